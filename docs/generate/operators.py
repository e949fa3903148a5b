"""One page an operator, and the index of all of them."""

import tomllib
from pathlib import Path
from typing import Any

from docs.generate import figures, observed
from docs.generate.markdown import fence, page, table
from docs.generate.measured import Results, lines_about
from leanconv.cost import dense_cost
from leanconv.nn import Operator, get, parse
from leanconv.papers.printed import COLUMNS, PrintedRow, printed_rows
from leanconv.registry import options_of
from leanconv.table import si

WORDS = Path(__file__).with_name("words.toml")
FIGURES = {"hetconv": "hetconv_speedup.svg", "xsepconv": "xsepconv_cost.svg"}
CAPTIONS = {
    "hetconv": "How many times fewer MACs than the dense layer, over `part`. At most k² times: every 1×1 stays.",
    "xsepconv": "MACs per channel and pixel: k² for the depthwise layer, 4 + 2k for XSepConv. They cross below 5×5.",
}
HOWTO = {
    "make_it_lean.md": "your trained model, leaner, in one command",
    "swap_a_model.md": "your trained model, leaner: plan, swap, fold, optimise, export",
    "train_your_own.md": "your own images and masks, from a folder to a report",
    "new_operator.md": "a convolution of your own, in one file",
    "guide.md": "which convolution for what",
    "results.md": "what was measured: speed, accuracy, the papers' tables",
    "kernels.md": "what each CPU kernel promises",
    "limits.md": "what this does not do",
}


def words() -> dict[str, dict[str, Any]]:
    """The hand-written words, by registry name."""
    return tomllib.loads(WORDS.read_text(encoding="utf-8"))


def operator_page(name: str, results: Results) -> str:
    """The page of one operator."""
    own, cls, seen = words()[name], get(name), observed.observe(name)
    text = own.get("example", name)
    return page(
        f"# {own['title']} (`{name}`)",
        own["idea"],
        f"Source: {cls.paper}. [All operators](../README.md), [which one for what](../guide.md).",
        "## When to use it",
        f"{own['when']}",
        f"**Mind:** {own['avoid']}",
        f"**To train it:** {own['train']}" if "train" in own else "",
        "## Formula",
        fence("text", observed.formula(name)),
        _cost(name, own["variants"]),
        _figure(name),
        _replaces(name),
        _options(name),
        "## Trained weights and folding",
        "\n".join(f"- {line}" for line in (_weights(name, seen.weights), seen.folds, seen.norm)),
        _paper(own),
        _measured(name, results),
        _code(name, text),
    )


def _cost(name: str, variants: list[str]) -> str:
    spec = observed.reference(name)
    dense, rows = dense_cost(spec), []
    for text in dict.fromkeys([name, *variants]):
        operator, options = parse(text)
        cost = get(operator).cost(spec, **options)
        rows.append(
            [
                f"`{text}`",
                f"{cost.macs:,}",
                f"{dense.macs / cost.macs:.2f}",
                f"{cost.executed_macs:,}",
                f"{cost.params:,}",
                f"{cost.norm_params:,}",
                si(cost.bytes) + "B",
            ]
        )
    head = ["operator", "MACs", "times fewer", "executed MACs", "params", "of norms", "bytes"]
    kind = "depthwise" if spec.groups > 1 else "dense"
    about = (
        f"On the reference layer {spec} at {spec.h}x{spec.w} without bias, where the {kind} layer has {dense.macs:,} "
        f"MACs and {dense.params:,} parameters. MACs are what the paper counts; executed MACs what runs here."
    )
    return page("## Cost", about, table(head, rows, "lrrrrrr")).rstrip()


def _figure(name: str) -> str:
    if name not in FIGURES:
        return ""
    title = figures.FIGURES[FIGURES[name]][1]
    return f"![{title}](../figures/{FIGURES[name]})\n\n{CAPTIONS[name]}"


def _replaces(name: str) -> str:
    kinds = ", ".join(sorted(get(name).replaces))
    about = (
        f"`plan` puts it in place of {kinds} convolutions; other kinds are kept. With default options, from 64 to 128 "
        "channels (depthwise: 64) where nothing else is said:"
    )
    rows = observed.taken(name)
    return page("## What it replaces", about, table(["layer", "taken, or why not"], rows)).rstrip()


def _options(name: str) -> str:
    defaults, meaning = options_of(get(name)), observed.option_words(name)
    if not defaults:
        return "## Options\n\nNone beyond those of `nn.Conv2d`."
    rows = [[f"`{option}`", f"`{value!r}`", meaning[option]] for option, value in defaults.items()]
    about = "`nn.Conv2d`'s arguments in its order, with its defaults; and, by keyword:"
    return page("## Options", about, table(["option", "default", "meaning"], rows)).rstrip()


def _weights(name: str, kept: str) -> str:
    doc = (get(name).project_.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    own = " ".join(doc.split()) if get(name).project_ is not Operator.project_ else ""
    said = {
        "exactly": "`apply_` keeps trained weights exactly: the swapped layer gives the dense layer's answers.",
        "the nearest": "`apply_` starts from the nearest layer it can make from the trained weights; fine-tune it.",
        "starts fresh": "`apply_` starts it with fresh weights: no closed form takes over the trained ones. Train it.",
    }[kept]
    return f"{said} {own}".rstrip() if kept != "starts fresh" else said


def _paper(own: dict[str, Any]) -> str:
    blocks = ["## What the paper prints"]
    blocks += ["\n".join(f"- {claim}" for claim in own["claims"])] if own["claims"] else []
    for slug, wanted in own["tables"].items():
        rows = [row for row in printed_rows() if row.slug == slug and wanted in row.row]
        shown = [_printed(row) for row in rows]
        columns = list(dict.fromkeys(key for row in shown for key in row))
        cells = [
            [row.row, "×".join(map(str, row.input)), *(each.get(key, "-") for key in columns)]
            for row, each in zip(rows, shown)
        ]
        about = (
            f"{rows[0].paper}, table {rows[0].table}, counted by its rule `{rows[0].convention}`; "
            f"`leanconv reproduce {slug}` prints ours beside it:"
        )
        blocks += [about, table(["network", "input", *columns], cells, "ll" + "r" * len(columns))]
    return page(*blocks).rstrip() if len(blocks) > 1 else ""


def _printed(row: PrintedRow) -> dict[str, str]:
    """Column -> figure, as the paper prints it."""
    less = {f"{COLUMNS[key]} less": f"{value:g} %" for key, value in row.reduced.items()}
    return {COLUMNS[key]: figure for key, figure in row.printed.items()} | less


def _measured(name: str, results: Results) -> str:
    lines = list(lines_about(name, results))
    said = "\n".join(lines) if lines else "Nothing yet: no benchmark of this repository has a committed figure for it."
    note = (
        "Figures of one file of `benchmarks/results` share data, budget and machine; the [results](../results.md) "
        "have them side by side."
    )
    return page("## What we measured", said, note if lines else "").rstrip()


def _code(name: str, text: str) -> str:
    spec = observed.reference(name)
    sizes = f"{spec.c}, {spec.o}, {spec.kernel[0]}, padding={spec.padding[0]}"
    sizes += f", groups={spec.groups}" if spec.groups > 1 else ""
    python = (
        "import torch\nfrom leanconv.nn import make\n\n"
        f'layer = make("{text}", {sizes})\nprint(layer(torch.randn(2, {spec.c}, 56, 56)).shape)'
    )
    shell = f"leanconv ops {name}"
    if name != "conv":
        network = "resnet18" if spec.groups == 1 else "mobilenetv3_small_100"
        shell += f'\nleanconv plan timm:{network} --to "{text}"'
    return page(
        "## Try it", fence("python", python), fence("text", f"torch.Size([2, {spec.o}, 56, 56])"), fence("sh", shell)
    ).rstrip()


def index_page() -> str:
    """The table of all operators, and the way to the other pages."""
    rows = []
    for name in words():
        spec, cls = observed.reference(name), get(name)
        cost, seen = cls.cost(spec), observed.observe(name)
        rows.append(
            [
                f"[`{name}`](operators/{name}.md)",
                words()[name]["title"],
                ", ".join(sorted(cls.replaces)),
                si(cost.macs),
                f"{dense_cost(spec).macs / cost.macs:.2f}",
                si(cost.params),
                seen.weights,
                seen.short,
            ]
        )
    head = ["name", "operator", "replaces", "MACs", "times fewer", "params", "trained weights", "folds to"]
    dense, depthwise = observed.REFERENCE["dense"], observed.REFERENCE["depthwise"]
    note = (
        f"Counted with default options on {dense} at {dense.h}x{dense.w}, no bias; those that replace depthwise layers "
        f'only, on {depthwise}. "Times fewer" is arithmetic, not time: times stand in the [results](results.md). '
        '"Trained weights" says what `apply_` keeps of a trained dense layer.'
    )
    return page(
        "# leanconv, page by page",
        "\n".join(f"- [{said[0].upper()}{said[1:]}]({file})" for file, said in HOWTO.items()),
        "## The operators",
        table(head, rows, "lllrrrll"),
        note,
        "These pages are generated (`make docs`) from the operators' files, the papers' tables and the committed "
        "benchmark results; a test fails where they differ. The words that no code can say are in "
        "[words.toml](generate/words.toml).",
    )
