"""The measured figures, from the JSON files that the benchmarks write; a section exists where its file does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.files import read_json
from leanconv.nn import parse

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@dataclass(frozen=True)
class Results:
    """Every results file by what it holds, each a dict from the file's stem to its content.

    Attributes:
        segmentation, classification: one short training budget for several operators.
        layers: every operator against the dense layer it replaces. networks: whole networks side by side.
        kernels: our kernels against the best other runtime on the same operator.
        engines: whole networks on our engine and on its peers; a list, one entry a network.
        shares: how many convolutions of public networks an operator takes.
        choices: what `optimize` chose against the best peer. budgets: the same within its default budget.
        gates: starts of the gate of SPConv and SPLConv, by the training loss they reach.
        journeys: photographs to defects and masks, and the time of each command.
        int8: what a trained network loses in int8.
        kept: what is left of a trained network after a swap, by its start. features: the error of its blocks' outputs.
        lean: what `leanconv lean` made of some networks.
        against_dense: training steps of whole networks.
        steps: our kernels for training against PyTorch's. loading: what a batch costs beside its training step.
        tiles: what the cost model of our kernels chooses, against other tiles and algorithms.
        other: files of another kind, which no page shows.
    """

    segmentation: dict[str, Any] = field(default_factory=dict)
    classification: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    kernels: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, Any] = field(default_factory=dict)
    journeys: dict[str, Any] = field(default_factory=dict)
    int8: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    lean: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    against_dense: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    tiles: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path = RESULTS) -> "Results":
        found = cls()
        for path in sorted(folder.glob("*.json")):
            content = read_json(path)
            getattr(found, _kind(content))[path.stem] = content
        return found


def _kind(content: Any) -> str:
    if not isinstance(content, dict):
        return "engines" if content and all("times" in entry and "clock" in entry for entry in content) else "other"
    if "start" in next(iter(content.get("runs") or [{}]), {}):
        return "gates"
    row = next(iter(content.get("rows") or [{}]), {})
    if "calibrated" in row:
        return "tiles"
    if isinstance(row.get("of_floor"), dict):
        return "steps"
    marks = {
        "pixels_differ": "journeys", "batch_cpu_ms": "loading", "peak_bytes": "against_dense", "features": "features",
        "project": "kept", "recovered": "lean", "val_loss": "int8",
    }  # fmt: skip
    for key, kind in marks.items():
        if key in row:
            return kind
    if "dice" in row and "reference" in row:
        return "segmentation"
    if "top1" in row and "operator" in row:
        return "classification"
    if "chosen" in row:
        return "choices" if "operator" in row else "budgets"
    if "best_peer" in row:
        return "kernels"
    if content.get("layers") and "inference eager" in content["layers"][0]:
        return "layers"
    if "models" in content.get("comparison", {}):
        return "networks"
    return "shares" if "share" in content and "architectures" in content else "other"


def operator_of(text: str) -> str:
    """The registry name in an operator string or a model reference; empty where there is none."""
    if "conv=" in text:
        text = text.partition("conv=")[2].split("&")[0]
    try:
        return parse(text.partition(", ")[0] if "(" not in text else text[: text.rindex(")") + 1])[0]
    except LeanconvError:
        return ""


def machine(content: dict[str, Any]) -> str:
    """Device, threads and torch in words."""
    words, about = kind_of_machine(content), _about(content)
    if isinstance(threads := about.get("threads"), int):  # some files have rows of several
        words += f", {threads} thread{'s' if threads != 1 else ''}"
    return words + (f", torch {about['torch']}" if about.get("torch") else "")


def kind_of_machine(content: dict[str, Any]) -> str:
    """Device and widest instructions that were used: figures of two kinds are never mixed."""
    about = _about(content)
    isa = f"{about.get('isa', '')}{', the rest masked off' if about.get('max_isa') else ''}"
    return str(about.get("name", "unnamed machine")) + (f" ({isa})" if isa else "")


def _about(content: dict[str, Any]) -> dict[str, Any]:
    return content.get("machine") or content.get("device") or content.get("comparison", {}).get("device") or {}


def device(content: dict[str, Any]) -> str:
    """ "cpu" or "cuda"; empty where the file does not say."""
    return str(_about(content).get("device", ""))


def dense_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the dense network among those of one file."""
    return next((row for row in rows if operator_of(row.get("operator") or row["reference"]) == "conv"), None)


def macs_of(row: dict[str, Any]) -> int:
    """The row's MACs, whatever input size its key names."""
    return int(next(value for key, value in row.items() if key.startswith("macs")))


def best(row: dict[str, Any], kind: str) -> float:
    """Median ms of one operator on one layer in its faster layout; `kind`: "inference" or "training"."""
    return min(row[f"{kind} {layout}"]["median_ms"] for layout in ("eager", "channels_last"))


def layer_ratios(content: dict[str, Any], kind: str) -> dict[str, dict[str, float]]:
    """Operator -> layer -> how many times faster than the dense layer, both in their faster layout."""
    dense = {row["layer"]: best(row, kind) for row in content["layers"] if row["operator"] == "conv"}
    found: dict[str, dict[str, float]] = {}
    for row in content["layers"]:
        if row["operator"] != "conv" and row["layer"] in dense:
            found.setdefault(row["operator"], {})[row["layer"]] = dense[row["layer"]] / best(row, kind)
    return found


def kernel_gains(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Operator -> layer -> how many times as fast as the best other runtime our kernel is."""
    found: dict[str, dict[str, float]] = {}
    for row in content["rows"]:
        found.setdefault(row["operator"], {})[row["layer"]] = row["speedup"]
    return found


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, score): whether no other point is as cheap and better, or cheaper and as good."""
    return [
        not any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points) for cost, score in points
    ]


def lines_about(name: str, results: Results) -> Iterator[str]:
    """Markdown lines with every measured figure of one operator."""
    for stem, content in results.segmentation.items():
        yield from _trained(name, stem, content, "dice", "Dice over all pixels")
    for stem, content in results.classification.items():
        yield from _trained(name, stem, content, "top1", "top-1")
    for stem, content in results.layers.items():
        for kind in ("inference", "training"):
            for text, ratios in layer_ratios(content, kind).items():
                if operator_of(text) == name:
                    yield f"- `{text}`, {kind}: {spread(ratios)} ({machine(content)}; `{stem}.json`)"
    for stem, content in results.kernels.items():
        for text, gains in kernel_gains(content).items():
            if operator_of(text) == name:
                words = spread(gains, "the best other runtime")
                yield f"- `{text}`, our CPU kernel: {words} ({machine(content)}; `{stem}.json`)"
    for stem, content in results.networks.items():
        models = content["comparison"]["models"]
        for each in models:
            if operator_of(each["name"]) == name and each is not models[0]:
                yield (
                    f"- Whole network, `{each['name']}`: {each['speedup']:.2f} times as fast as `{models[0]['name']}` "
                    f"at {_fewer(models[0]['macs'], each['macs'])} ({machine(content)}; `{stem}.json`)"
                )
    for stem, content in results.gates.items():
        yield from _gates(name, stem, content)
    for stem, content in results.shares.items():
        for text, found in content["share"].items():
            if operator_of(text) == name:
                yield (
                    f"- `{text}` takes {found['swapped']:,} of {found['dense']:,} dense convolutions "
                    f"({100 * found['share']:.1f} %) in {content['planned']:,} public networks that have any "
                    f"(`{stem}.json`)"
                )


def _trained(name: str, stem: str, content: dict[str, Any], score: str, title: str) -> Iterator[str]:
    rows = content["rows"]
    dense = dense_row(rows)
    for row in rows:
        if operator_of(row.get("operator") or row["reference"]) != name:
            continue
        words = f"- {row.get('model') or row['operator']}: {title} {row[score]['mean']:.3f}"
        if dense is not None and row is not dense:
            words += f" (dense {dense[score]['mean']:.3f}) at {_fewer(macs_of(dense), macs_of(row))}"
        yield f"{words}, {_seeds(row['seeds'])} (`{stem}.json`)"


def _gates(name: str, stem: str, content: dict[str, Any]) -> Iterator[str]:
    """Lines for each network and length of training: the loss by how the gate starts, and where the gate ends.

    One for untrained networks.
    """
    found: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for run in content["runs"]:
        if operator_of(run["operator"]) == name:
            starts = found.setdefault((run["reference"].partition("conv=")[0].rstrip("?&"), run["steps"]), {})
            starts.setdefault(run["start"], []).append(run)
    words = {"full": "usual weights", "quiet": "quiet start", "half": "gate held at one half"}
    for (network, steps), starts in found.items():
        losses = [
            f"{words.get(start, f'gate that comes on over {start} of the steps')} {_spread([r['loss'] for r in runs])}"
            for start, runs in starts.items()
        ]
        yield f"- `{network}`, training loss after {steps} steps: {'; '.join(losses)} (`{stem}.json`)"
        moves = [
            f"{words[start]} {fmean(fmean(g['start'].values()) for g in gates):.3f} and "
            f"{fmean(fmean(g['end'].values()) for g in gates):.3f}"
            for start, runs in starts.items()
            if start in ("full", "quiet") and (gates := [run["gate"] for run in runs if "gate" in run])
        ]
        if moves:
            yield (
                f"- `{network}`, mean distance of the gates from one half, before and after {steps} steps: "
                f"{'; '.join(moves)} (`{stem}.json`)"
            )
    last = [row for row in content["layers"] if row["last"] and operator_of(row["network"]) == name]
    for network in dict.fromkeys(row["network"] for row in last):
        shares = "; ".join(
            f"{words[row['variant']]} {row['common']:.2f}"
            for row in last
            if row["network"] == network and row["variant"] in words
        )
        yield f"- `{network}`, untrained, share of one common mode in its last gated layer: {shares} (`{stem}.json`)"


def _spread(values: list[float]) -> str:
    """Return mean, range and number."""
    among = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{among}, {_seeds(len(values))}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds"


def _fewer(dense: float, own: float) -> str:
    if own == dense:
        return "the same MACs"
    return f"{dense / own:.2f} times fewer MACs" if own < dense else f"{own / dense:.2f} times as many MACs"


def spread(ratios: dict[str, float], than: str = "dense") -> str:
    """How an operator does over the layers it was timed on, best and worst by name."""
    top, low = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    faster = sum(ratio > 1 for ratio in ratios.values())
    words = f"faster than {than} on {faster} of {len(ratios)} layers, best {ratios[top]:.2f}x ({top})"
    return words + (f", worst {ratios[low]:.2f}x ({low})" if top != low else "")
