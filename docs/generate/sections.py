"""The sections of the guide, one function for each kind of results file."""

import math
import statistics
from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import dense_row, front, kernel_gains, layer_ratios, machine, macs_of, spread
from leanconv.table import si

SCORES = {"dice": "Dice, all pixels", "image_dice": "Dice, mean over images", "image_iou": "IoU, mean over images"}


def trained(stem: str, content: dict[str, Any], key: str, task: str) -> str:
    """One training budget for several operators: scores, costs, and which rows are the best for their MACs."""
    rows, dense = content["rows"], dense_row(content["rows"])
    titles = SCORES if key == "dice" else {"top1": "top-1", "top5": "top-5"}
    marks = front([(macs_of(row), score(row, key)) for row in rows])
    cells = []
    for row, is_best in sorted(zip(rows, marks), key=lambda pair: -score(pair[0], key)):
        cell = [name(row), si(macs_of(row)), si(row["params"]), *(mean(row, k) for k in titles)]
        if dense is not None:
            less = f"{macs_of(dense) / macs_of(row):.2f}"
            cell += [less, f"{score(row, key) - score(dense, key):+.3f}", "yes" if is_best else ""]
        cells.append(cell)
    head = ["model", "MACs", "params", *titles.values()]
    head += ["times fewer MACs", f"{titles[key]}: against dense", "on the front"] if dense is not None else []
    seeds = min(row["seeds"] for row in rows)
    caution = f"Mean of {seeds} seeds."
    if seeds == 1:
        some = "a row" if max(row["seeds"] for row in rows) == 1 else "where no spread stands"
        caution = f"One seed {some}: differences of a few hundredths are noise."
    note = (
        f"{caution} On the front: no other row is as cheap and better. "
        if dense is not None
        else f"{caution} No dense network was trained on this budget, so nothing is compared. "
    )
    return page(
        f"## {task}: {budget(stem, content)}",
        table(head, cells, "l" + "r" * (4 + len(titles))),
        f"{note}Split: {content['split']}. {machine(content)}; `{content['command']}`, `{stem}.json`.",
        rates(content),
    ).rstrip()


def rates(content: dict[str, Any]) -> str:
    """Images per second of the trained networks, where they were timed."""
    speed = content.get("speed")
    if not speed:
        return ""
    rates = {kind: speed[kind]["images_per_s"] for kind in ("forward", "train")}
    rows = [
        [f"`{text}`", *(cell for kind in rates for cell in rate(rates[kind], text))]
        for text in sorted(rates["forward"], key=lambda text: -rates["forward"][text])
    ]
    head = ["operator", "forward img/s", "× dense", "training img/s", "× dense"]
    return f"{table(head, rows, 'lrrrr')}\n\nImages per second: {speed['clock']}, {speed['layout']}."


def rate(rates: dict[str, float], text: str) -> tuple[str, str]:
    if text not in rates:
        return "-", "-"
    dense = rates.get("conv")
    return f"{rates[text]:.0f}", f"{rates[text] / dense:.2f}" if dense else "-"


def networks(stem: str, content: dict[str, Any]) -> str:
    """Whole networks side by side."""
    comparison = content["comparison"]
    models = comparison["models"]
    base = models[0]
    rows = [
        [
            f"`{m['name']}`",
            si(m["macs"]),
            f"{base['macs'] / m['macs']:.2f}",
            f"{m['ms']['median_ms']:.0f}",
            f"{m['ms']['iqr_ms']:.0f}",
            f"{m['speedup']:.2f}",
        ]
        for m in models
    ]
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


def layers(stem: str, content: dict[str, Any]) -> str:
    """Every operator against the dense layer it replaces, layer by layer."""
    blocks = [f"## Time of single layers (`{stem}.json`)"]
    for kind in ("inference", "training"):
        ratios = layer_ratios(content, kind)
        layers = list(dict.fromkeys(layer for own in ratios.values() for layer in own))
        order = sorted(ratios, key=lambda text: -max(ratios[text].values()))
        rows = [[f"`{t}`", *(f"{ratios[t][x]:.2f}" if x in ratios[t] else "" for x in layers)] for t in order]
        what = "inference, batch 1" if kind == "inference" else "training step"
        blocks += [
            f"Times as fast as the dense layer, {what}, each in its faster layout:",
            table(["operator", *layers], rows, "l" + "r" * len(layers)),
        ]
    slow = [(t, own) for t, own in layer_ratios(content, "inference").items() if min(own.values()) < 1]
    if slow:
        blocks.append("Losses, inference:\n\n" + "\n".join(f"- `{text}`: {spread(own)}" for text, own in slow))
    blocks.append(f"Above 1: faster. {machine(content)}, clock: {content['clock']}; `{content['command']}`.")
    return page(*blocks).rstrip()


def kernels(stem: str, content: dict[str, Any]) -> str:
    """Our kernels against the best other runtime on the same operator."""
    rows = []
    for text, gains in kernel_gains(content).items():
        best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
        lost = sum(gain < 1 for gain in gains.values())
        middle = math.exp(statistics.fmean(math.log(gain) for gain in gains.values()))
        edges = (f"{gains[best]:.2f} ({best})", f"{gains[worst]:.2f} ({worst})")
        rows.append([f"`{text}`", len(gains), f"{middle:.2f}", *edges, lost])
    peers = sorted({peer for row in content["rows"] for peer in row["ms"]} - {"ours"})
    return page(
        "## Our kernels against the best other runtime",
        "The same operator, layer by layer: how many times as fast our CPU kernel is as the fastest of "
        f"{', '.join(peers)}. Below 1 the other runtime wins.",
        table(["operator", "layers", "geometric mean", "best", "worst", "losses"], rows, "lrrllr"),
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()


def engines(stem: str, entries: list[dict[str, Any]]) -> str:
    """Whole networks on our engine, on the best other engine, and the dense network on its best engine."""
    rows, commands = [], []
    for entry in entries:
        fused = entry["times"].get(f"{entry['model']}, fused", {}).get("median_ms")
        peers = _medians(entry, entry["model"], without="fused")
        dense = _medians(entry, entry.get("against") or "-")
        if fused is None or not peers:
            continue
        peer, base = min(peers, key=peers.__getitem__), min(dense, key=dense.__getitem__) if dense else ""
        against = f"{dense[base] / fused:.2f} ({base})" if base else "-"
        size, floor = str(entry["size"]), entry.get("floors", {}).get(entry["model"])
        setting = f"{entry['batch']}x3x{size if 'x' in size else f'{size}x{size}'}, {entry['threads']}"
        setting += f", {entry['dtype']}" if entry.get("dtype", "float32") != "float32" else ""
        share = f"{floor['ms'] / fused:.0%}" if floor else "-"
        faster = f"{peers[peer] / fused:.2f} ({peer})"
        rows.append([f"`{entry['model']}`", setting, f"{fused:.3g}", faster, against, share])
        commands.append(f"`{entry['command']}`" if "command" in entry else "")
    clocks = " and ".join(sorted({entry["clock"] for entry in entries}))
    head = ["network", "input, threads", "ms", "against its best peer", "against the dense network's best engine",
            "of the floor"]  # fmt: skip
    return page(
        "## Whole networks on our engine",
        f"Float32 where nothing else is said, interleaved medians in one process ({clocks} time); above 1 our engine "
        "is faster. The floor: what the network's arithmetic and traffic take at this machine's peaks, block by block.",
        table(head, rows, "llrrrr"),
        f"{machine(entries[0])}; {'; '.join(dict.fromkeys(filter(None, commands)))}, `{stem}.json`.",
    ).rstrip()


def _medians(entry: dict[str, Any], model: str, without: str = "") -> dict[str, float]:
    """Engine -> median ms of one model of an entry."""
    found = {
        name.removeprefix(f"{model}, "): t["median_ms"]
        for name, t in entry["times"].items()
        if name.startswith(f"{model}, ")
    }
    return {engine: value for engine, value in found.items() if engine != without}


def shares(stem: str, content: dict[str, Any]) -> str:
    """How many convolutions of public networks an operator takes."""
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


def score(row: dict[str, Any], key: str) -> float:
    """A row's mean over its seeds."""
    return float(row[key]["mean"])


def mean(row: dict[str, Any], key: str) -> str:
    """The same as text, with its spread where there is one."""
    spread = row[key]["stdev"]
    return f"{row[key]['mean']:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")


def name(row: dict[str, Any]) -> str:
    """What a row is called."""
    return str(row["model"]) if "model" in row else f"`{row['operator']}`"


def named(rows: list[dict[str, Any]]) -> str:
    """Rows in a list."""
    return ", ".join(name(row) for row in rows)


def share(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """A row's MACs against the dense network's."""
    return f"{100 * macs_of(row) / macs_of(dense):.0f} %"


def codes(texts: list[str]) -> str:
    """Operator strings in a list."""
    return ", ".join(f"`{text}`" for text in texts)


def budget(stem: str, content: dict[str, Any]) -> str:
    """A file's data and training in words: what its name says, and the epochs or steps that its command asks for."""
    asked = [word.partition("=") for word in content["command"].split() if word.startswith(("epochs=", "steps="))]
    budget = f"{content['epochs']} epochs" if "epochs" in content else ", ".join(f"{n} {unit}" for unit, _, n in asked)
    about = " ".join(word for word in stem.split("_")[1:] if not word.endswith(("epochs", "steps")))
    return f"{about}, {budget}" if budget else about
