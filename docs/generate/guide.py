"""The decision guide: which convolution for what, from committed measurements and the operators' words."""

from collections.abc import Iterator

from docs.generate.markdown import page
from docs.generate.measured import (
    Results,
    dense_row,
    device,
    front,
    layer_ratios,
    machine,
    macs_of,
    operator_of,
)
from docs.generate.operators import words
from docs.generate.sections import budget, codes, name, score, share
from docs.generate.speed import geometric
from leanconv.nn import names

INTRODUCTION = (
    "Every figure is read from a file under `benchmarks/results`; [the results](results.md) have the tables, with "
    "the command and the machine of each. Figures of one file belong together (same data, budget, machine); figures of "
    "two files do not. How an operator works stands on [its own page](README.md)."
)


def guide_page(results: Results) -> str:
    """The whole guide. An answer stands only where its results file does."""
    return page(
        "# Which convolution for what",
        INTRODUCTION,
        _answers(results),
        "## When to use which operator",
        "\n".join(f"- [`{name}`](operators/{name}.md): {own['when']}" for name, own in words().items()),
        "## What is not measured yet",
        "\n".join(_gaps(results)),
    )


def _answers(results: Results) -> str:
    lines = [*_answer_untouched(results), *_answer_scores(results), *_answer_speed(results), *_answer_share(results)]
    return page("## In short", "\n".join(lines)).rstrip() if lines else ""


def _answer_untouched(results: Results) -> Iterator[str]:
    for content in [results.choices["choices"]] if "choices" in results.choices else []:
        whole = [row for row in content["rows"] if row["operator"] == "network"]
        given = [row for row in whole if row["place"].startswith("timm:") and " to " not in row["place"]]
        listed = ", ".join(f"`{row['place']}` {row['ratio']:.2f}" for row in sorted(given, key=lambda r: -r["ratio"]))
        if listed:
            yield f"- **Without training:** call `optimize` alone. Times as fast as the best other engine: {listed}."
        single = [row["ratio"] for row in content["rows"] if row["operator"] != "network"]
        if single:
            yield (
                f"- **What `optimize` chooses** for single layers: geometric mean {geometric(single):.2f} times the "
                f"best peer's speed on {len(single)} layers "
                "([table](results.md#what-optimize-chose-against-the-best-peer))."
            )
    for content in results.layers.values():
        seen = [
            ratio
            for own in layer_ratios(content, "inference").values()
            for layer, ratio in own.items()
            if layer.startswith("depthwise")
        ]
        if seen and max(seen) <= 1:
            yield (
                "- **Networks of depthwise layers (MobileNetV3):** `optimize` alone; in plain PyTorch no operator was "
                "faster than the depthwise layer that it replaces."
            )


def _answer_scores(results: Results) -> Iterator[str]:
    scored = [(s, c, "dice", "Dice", "Segmentation") for s, c in results.segmentation.items()]
    scored += [(s, c, "top1", "top-1", "Classification") for s, c in results.classification.items()]
    for stem, content, key, title, task in scored:
        rows, dense = content["rows"], dense_row(content["rows"])
        lean = [row for row in rows if dense is not None and row is not dense]
        if dense is None or not lean:
            continue
        good = [row for row in lean if row[key]["mean"] >= dense[key]["mean"]]
        marks = front([(macs_of(row), score(row, key)) for row in lean])
        picks = sorted((row for row, is_best in zip(lean, marks) if is_best), key=lambda row: -macs_of(row))
        listed = "; ".join(f"{name(row)} {score(row, key):.3f} at {share(row, dense)} of the MACs" for row in picks)
        count = f"{len(good)} of {len(lean)} reach" if good else f"none of {len(lean)} reaches"
        yield (
            f"- **{task}, {budget(stem, content)}:** {count} the dense network's {title} of {score(dense, key):.3f}. "
            f"The best for their MACs: {listed}."
        )


def _answer_speed(results: Results) -> Iterator[str]:
    for content in results.networks.values():
        models = content["comparison"]["models"]
        alike = [m for m in models if m["name"].endswith(", optimised")] or models  # both sides optimised, or neither
        top, base = max(alike, key=lambda m: m["speedup"]), alike[0]
        yield (
            f"- **Time of a whole network:** {base['macs'] / top['macs']:.2f} times fewer MACs became "
            f"{top['speedup'] / base['speedup']:.2f} times the speed (`{top['name']}` against `{base['name']}`, "
            f"{machine(content)})."
        )
    for content in results.layers.values():
        ratios = layer_ratios(content, "inference")
        slower = sorted(text for text, own in ratios.items() if max(own.values()) <= 1)
        always = sorted(text for text, own in ratios.items() if min(own.values()) > 1)
        where = f"({machine(content)})"
        if always:
            yield f"- **Faster than dense on every layer timed, not optimised** {where}: {codes(always)}."
        if slower:
            yield f"- **Faster than dense on no layer timed, not optimised** {where}: {codes(slower)}."


def _answer_share(results: Results) -> Iterator[str]:
    for content in results.shares.values():
        listed = (f"`{text}` {100 * found['share']:.1f} %" for text, found in content["share"].items())
        of = f"Of the dense convolutions of {content['planned']:,} public networks"
        yield f"- **Will it fit my network?** {of}: {', '.join(listed)}."


def _gaps(results: Results) -> Iterator[str]:
    scored = {
        operator_of(row.get("operator") or row["reference"])
        for group in (results.segmentation, results.classification)
        for content in group.values()
        for row in content["rows"]
    }
    timed = {operator_of(row["operator"]) for c in results.layers.values() for row in c["layers"]}
    timed |= {operator_of(m["name"]) for c in results.networks.values() for m in c["comparison"]["models"]}
    for title, found in (("Accuracy", scored), ("Time against the dense layer", timed)):
        if rest := [name for name in names() if name not in found]:
            yield f"- **{title}** of {codes(rest)}."
    everything = [c for group in vars(results).values() for c in group.values() if isinstance(c, dict)]
    devices = sorted({device(c) for c in everything} - {""})
    yield f"- **Devices:** all figures come from {' and '.join(devices) or 'none'}; every other device is open."
    single = [
        stem
        for group in (results.segmentation, results.classification)
        for stem, content in group.items()
        if min(row["seeds"] for row in content["rows"]) == 1
    ]
    if single:
        yield f"- **Spread over seeds** in {', '.join(f'`{stem}.json`' for stem in single)}: rows of one seed only."
    yield "- **Systolic arrays:** `leanconv profile MODEL --array 64x64` gives cycles of a model, not of a device."
    yield "- **The papers' own budgets:** ours are short ones; the papers' accuracies stand on the operators' pages."
    for stem in results.other:
        yield f"- `{stem}.json` is of a kind that no page shows."
