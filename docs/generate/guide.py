"""The decision guide: which convolution for what, from committed measurements alone."""

from collections.abc import Iterator
from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import (
    Results,
    dense_row,
    device,
    front,
    layer_ratios,
    machine,
    macs_of,
    operator_of,
    spread,
)
from leanconv.nn import names
from leanconv.table import si

INTRODUCTION = (
    "Every figure here is read from a file under `benchmarks/results`, and the command that made it stands beside it. "
    "What was not measured is listed at the end, not guessed. Figures of one file belong together (same data, budget, "
    "machine); figures of two files do not. How an operator works stands on [its own page](README.md)."
)
SCORES = {"dice": "Dice, all pixels", "image_dice": "Dice, mean over images", "image_iou": "IoU, mean over images"}


def guide_page(results: Results) -> str:
    """The whole guide. A section stands only where its results file does."""
    sections = [
        *(_trained(stem, c, "dice", "Segmentation") for stem, c in results.segmentation.items()),
        *(_trained(stem, c, "top1", "Classification") for stem, c in results.classification.items()),
        *(_networks(stem, c) for stem, c in results.networks.items()),
        *(_layers(stem, c) for stem, c in results.layers.items()),
        *(_shares(stem, c) for stem, c in results.shares.items()),
    ]
    return page(
        "# Which convolution for what",
        INTRODUCTION,
        _answers(results),
        *sections,
        "## What is not measured yet",
        "\n".join(_gaps(results)),
    )


def _answers(results: Results) -> str:
    lines = [*_answer_scores(results), *_answer_speed(results), *_answer_share(results)]
    return page("## In short", "\n".join(lines)).rstrip() if lines else ""


def _answer_scores(results: Results) -> Iterator[str]:
    scored = [(s, c, "dice", "Dice", "Segmentation") for s, c in results.segmentation.items()]
    scored += [(s, c, "top1", "top-1", "Classification") for s, c in results.classification.items()]
    for stem, content, key, title, task in scored:
        rows, dense = content["rows"], dense_row(content["rows"])
        lean = [row for row in rows if dense is not None and row is not dense]
        if dense is None or not lean:
            continue
        good = [row for row in lean if row[key]["mean"] >= dense[key]["mean"]]
        marks = front([(macs_of(row), _score(row, key)) for row in lean])
        picks = sorted((row for row, is_best in zip(lean, marks) if is_best), key=lambda row: -macs_of(row))
        told = "; ".join(f"{_name(row)} {_score(row, key):.3f} at {_share(row, dense)} of the MACs" for row in picks)
        count = f"{len(good)} of {len(lean)} reach" if good else f"none of {len(lean)} reaches"
        yield (
            f"- **{task}, {_budget(stem, content)}:** {count} the dense network's {title} of {_score(dense, key):.3f}. "
            f"The best for their MACs: {told}."
        )


def _answer_speed(results: Results) -> Iterator[str]:
    for content in results.networks.values():
        models = content["comparison"]["models"]
        top, base = max(models, key=lambda m: m["speedup"]), models[0]
        yield (
            f"- **Time of a whole network:** {base['macs'] / top['macs']:.2f} times fewer MACs became "
            f"{top['speedup']:.2f} times the speed (`{top['name']}` against `{base['name']}`, {machine(content)})."
        )
    for content in results.layers.values():
        ratios = layer_ratios(content, "inference")
        slower = sorted(text for text, own in ratios.items() if max(own.values()) <= 1)
        always = sorted(text for text, own in ratios.items() if min(own.values()) > 1)
        where = f"({machine(content)})"
        if always:
            yield f"- **Faster than dense on every layer timed** {where}: {_codes(always)}."
        if slower:
            yield f"- **Faster than dense on no layer timed** {where}: {_codes(slower)}."


def _answer_share(results: Results) -> Iterator[str]:
    for content in results.shares.values():
        told = (f"`{text}` {100 * found['share']:.1f} %" for text, found in content["share"].items())
        of = f"Of the dense convolutions of {content['planned']:,} public networks"
        yield f"- **Will it fit my network?** {of}: {', '.join(told)}."


def _trained(stem: str, content: dict[str, Any], key: str, task: str) -> str:
    rows, dense = content["rows"], dense_row(content["rows"])
    titles = SCORES if key == "dice" else {"top1": "top-1", "top5": "top-5"}
    marks = front([(macs_of(row), _score(row, key)) for row in rows])
    cells = []
    for row, is_best in sorted(zip(rows, marks), key=lambda pair: -_score(pair[0], key)):
        cell = [_name(row), si(macs_of(row)), si(row["params"]), *(_mean(row, k) for k in titles)]
        if dense is not None:
            less = f"{macs_of(dense) / macs_of(row):.2f}"
            cell += [less, f"{_score(row, key) - _score(dense, key):+.3f}", "yes" if is_best else ""]
        cells.append(cell)
    head = ["model", "MACs", "params", *titles.values()]
    head += ["times fewer MACs", f"{titles[key]}: against dense", "on the front"] if dense is not None else []
    seeds = min(row["seeds"] for row in rows)
    caution = "One seed a row: differences of a few hundredths are noise." if seeds == 1 else f"Mean of {seeds} seeds."
    note = (
        f"{caution} On the front: no other row is as cheap and better. "
        if dense is not None
        else f"{caution} No dense network was trained on this budget, so nothing is compared. "
    )
    return page(
        f"## {task}: {_budget(stem, content)}", table(head, cells, "l" + "r" * (4 + len(titles))),
        f"{note}Split: {content['split']}. {machine(content)}; `{content['command']}`, `{stem}.json`.",
        _rates(content),
    ).rstrip()  # fmt: skip


def _rates(content: dict[str, Any]) -> str:
    speed = content.get("speed")
    if not speed:
        return ""
    rates = {kind: speed[kind]["images_per_s"] for kind in ("forward", "train")}
    rows = [
        [f"`{text}`", *(cell for kind in rates for cell in _rate(rates[kind], text))]
        for text in sorted(rates["forward"], key=lambda text: -rates["forward"][text])
    ]  # fmt: skip
    head = ["operator", "forward img/s", "× dense", "training img/s", "× dense"]
    return f"{table(head, rows, 'lrrrr')}\n\nImages per second: {speed['clock']}, {speed['layout']}."


def _rate(rates: dict[str, float], text: str) -> tuple[str, str]:
    if text not in rates:
        return "-", "-"
    dense = rates.get("conv")
    return f"{rates[text]:.0f}", f"{rates[text] / dense:.2f}" if dense else "-"


def _networks(stem: str, content: dict[str, Any]) -> str:
    comparison = content["comparison"]
    models = comparison["models"]
    base = models[0]
    rows = [
        [f"`{m['name']}`", si(m["macs"]), f"{base['macs'] / m['macs']:.2f}", f"{m['ms']['median_ms']:.0f}",
         f"{m['ms']['iqr_ms']:.0f}", f"{m['speedup']:.2f}"]
        for m in models
    ]  # fmt: skip
    lost = [f"`{m['name']}` {m['speedup']:.2f}" for m in models[1:] if m["speedup"] < 1]
    said = [f"Slower than `{base['name']}`: {', '.join(lost)}."] if lost else []
    leaner = [m for m in models[1:] if m["macs"] < base["macs"]]
    short = sum(m["speedup"] < base["macs"] / m["macs"] for m in leaner)
    if short:
        said.append(f"{short} of {len(leaner)} leaner forms are faster by less than their MACs are fewer.")
    engines = content.get("engines", {})
    chosen = ", ".join(f"`{name}`: {found['chosen']}" for name, found in engines.items())
    shape = "x".join(map(str, comparison["shape"]))
    return page(
        f"## Time of a whole network: {shape}, {comparison['dtype']}",
        table(["model", "MACs", "times fewer", "median ms", "IQR", "times as fast"], rows, "lrrrrr"),
        " ".join(said),
        f"Engine chosen by `optimize`: {chosen}." if chosen else "",
        "Interleaved rounds in one process; read the ratios. "
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()


def _layers(stem: str, content: dict[str, Any]) -> str:
    blocks = [f"## Time of single layers (`{stem}.json`)"]
    for kind in ("inference", "training"):
        ratios = layer_ratios(content, kind)
        layers = list(dict.fromkeys(layer for own in ratios.values() for layer in own))
        order = sorted(ratios, key=lambda text: -max(ratios[text].values()))
        rows = [[f"`{t}`", *(f"{ratios[t][x]:.2f}" if x in ratios[t] else "" for x in layers)] for t in order]
        what = "inference, batch 1" if kind == "inference" else "training step"
        blocks += [f"Times as fast as the dense layer, {what}, each in its faster layout:",
                   table(["operator", *layers], rows, "l" + "r" * len(layers))]  # fmt: skip
    slow = [(t, own) for t, own in layer_ratios(content, "inference").items() if min(own.values()) < 1]
    if slow:
        blocks.append("Losses, inference:\n\n" + "\n".join(f"- `{text}`: {spread(own)}" for text, own in slow))
    blocks.append(f"Above 1: faster. {machine(content)}, clock: {content['clock']}; `{content['command']}`.")
    return page(*blocks).rstrip()


def _shares(stem: str, content: dict[str, Any]) -> str:
    rows, missed = [], []
    for text, found in content["share"].items():
        kept = ", ".join(f"{count:,} {reason}" for reason, count in found["kept"].items())
        shares = (f"{100 * found[key]:.1f} %" for key in ("share", "default_share"))
        rows.append([f"`{text}`", f"{found['swapped']:,}", *shares, kept])
        if found["share"] < found["aim"]:
            missed.append(f"`{text}` misses our aim of {100 * found['aim']:.0f} %.")
    dense = next(iter(content["share"].values()))["dense"]
    return page(
        "## Will it fit my network?",
        f"Planned, not trained, on {content['architectures']:,} public architectures; {content['planned']:,} have "
        f"dense k×k convolutions, {dense:,} in all.",
        table(["operator", "swapped", "share", "share without `where`", "kept because"], rows, "lrrrl"),
        f"{' '.join(missed)} Without `where`, `plan` leaves a network's first convolution. Options that do not divide "
        f"the channels (HetConv's `part`) can be chosen per layer: `to` takes a function too. "
        f"`python -m benchmarks.zoo_share`, `{stem}.json`.".strip(),
    ).rstrip()


def _gaps(results: Results) -> Iterator[str]:
    trained = {
        operator_of(row.get("operator") or row["reference"])
        for group in (results.segmentation, results.classification)
        for content in group.values()
        for row in content["rows"]
    }
    timed = {operator_of(row["operator"]) for c in results.layers.values() for row in c["layers"]}
    timed |= {operator_of(m["name"]) for c in results.networks.values() for m in c["comparison"]["models"]}
    for title, found in (("Accuracy", trained), ("Time", timed)):
        if rest := [name for name in names() if name not in found]:
            yield f"- **{title}** of {_codes(rest)}."
    everything = [c for group in vars(results).values() for c in group.values() if isinstance(c, dict)]
    devices = sorted({device(c) for c in everything} - {""})
    yield f"- **Devices:** all figures above come from {' and '.join(devices) or 'none'}; every other device is open."
    single = [
        stem
        for group in (results.segmentation, results.classification)
        for stem, content in group.items()
        if min(row["seeds"] for row in content["rows"]) == 1
    ]
    if single:
        yield f"- **Spread over seeds** in {', '.join(f'`{stem}.json`' for stem in single)}: one seed only."
    yield "- **Systolic arrays:** `leanconv profile MODEL --array 64x64` gives cycles of a model, not of a device."
    yield "- **The papers' own budgets:** what stands above are short ones; the papers' accuracies stand on the pages."
    for stem in results.other:
        yield f"- `{stem}.json` is of a kind that this page does not show."


def _score(row: dict[str, Any], key: str) -> float:
    return float(row[key]["mean"])


def _mean(row: dict[str, Any], key: str) -> str:
    spread = row[key]["stdev"]
    return f"{row[key]['mean']:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")


def _name(row: dict[str, Any]) -> str:
    return str(row["model"]) if "model" in row else f"`{row['operator']}`"


def _named(rows: list[dict[str, Any]]) -> str:
    return ", ".join(_name(row) for row in rows)


def _share(row: dict[str, Any], dense: dict[str, Any]) -> str:
    return f"{100 * macs_of(row) / macs_of(dense):.0f} %"


def _codes(texts: list[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


def _budget(stem: str, content: dict[str, Any]) -> str:
    """A file's data and training in words: what its name says, and the epochs or steps that its command asks for."""
    asked = [word.partition("=") for word in content["command"].split() if word.startswith(("epochs=", "steps="))]
    budget = f"{content['epochs']} epochs" if "epochs" in content else ", ".join(f"{n} {unit}" for unit, _, n in asked)
    about = " ".join(word for word in stem.split("_")[1:] if not word.endswith(("epochs", "steps")))
    return f"{about}, {budget}" if budget else about
