"""The sections on speed, one function for each kind of results file. A heading says what its table compares."""

import inspect
import math
import statistics
from collections.abc import Iterable
from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import kernel_gains, kind_of_machine, layer_ratios, machine, spread
from leanconv.engine.optimize import optimize
from leanconv.table import si

LIMIT = 0.97  # benchmarks/choices.py: a choice below this share of the best peer counts as lost
FEWEST = "LEANCONV_ARITHMETIC=fewest"
FLOOR = (
    "The roofline is the time that arithmetic and memory traffic take at the peaks measured on that machine, for the "
    "direct sums. Winograd and Strassen need fewer products, so a share can exceed 100 %."
)


def networks(stem: str, content: dict[str, Any]) -> str:
    """Whole networks side by side, as they stand and after `optimize`."""
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
        f"## A network as it stands and after `optimize`: U-Net, {shape}, {comparison['dtype']}",
        table(["model", "MACs", "times fewer", "median ms", "IQR", "times as fast"], rows, "lrrrrr"),
        " ".join(said),
        f"Engine chosen by `optimize`: {chosen}." if chosen else "",
        "Interleaved rounds in one process; read the ratios. "
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()


def layers(stem: str, content: dict[str, Any]) -> str:
    """Every operator against the dense layer it replaces, layer by layer."""
    blocks = [
        "## Single layers in plain PyTorch, against the dense layer they replace",
        "Neither side is optimised here. Above 1 the operator is faster than the dense layer.",
    ]
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
    blocks.append(f"{machine(content)}, clock: {content['clock']}; `{content['command']}`, `{stem}.json`.")
    return page(*blocks).rstrip()


def kernels(files: dict[str, dict[str, Any]]) -> str:
    """Our kernels against the best other runtime on the same operator, on each kind of machine."""
    examples = {stem: content for stem, content in files.items() if all(map(_is_example, content["rows"]))}
    files = {stem: content for stem, content in files.items() if stem not in examples}
    kinds = {stem: kind_of_machine(content) for stem, content in files.items()}
    if not files and not examples:
        return ""
    one = len(files) <= 1
    parts = [
        "## Single layers: our kernel called directly, against the best other runtime",
        "The same operator, layer by layer, with its ReLU. A figure says how many times as fast our CPU kernel is as "
        "the fastest other runtime. Below 1 the other runtime wins. `optimize` takes no part here, and the time is the "
        f"least CPU time of a call. {FLOOR} The speed-up at the roofline is that of layers which all reach it.",
    ]
    if not one:
        gains = {stem: kernel_gains(content) for stem, content in files.items()}
        names = dict.fromkeys(name for found in gains.values() for name in found)
        rows = [
            [f"`{n}`", *(f"{geometric(g[n].values()):.2f}" if n in g else "-" for g in gains.values())] for n in names
        ]
        count = [str(sum(map(len, own.values()))) for own in gains.values()]
        every = [f"{geometric(x for own in g.values() for x in own.values()):.2f}" for g in gains.values()]
        head = table(
            ["geometric mean", *kinds.values()],
            [*rows, ["all layers", *every], ["layers measured", *count]],
            "l" + "r" * len(kinds),
        )
        parts += [f"Kinds of machines side by side; each against its own peers:\n\n{head}"]
    for stem, content in files.items():
        parts += ([] if one else [f"### {kinds[stem]}"]) + [_kernels(stem, content)]
    for stem, content in examples.items():
        parts += [*_examples(content), f"{machine(content)}; `{content['command']}`, `{stem}.json`."]
    return page(*parts).rstrip()


def _kernels(stem: str, content: dict[str, Any]) -> str:
    """The table of one file."""
    rows, gains_of = [], kernel_gains(content)
    for text, gains in sorted(gains_of.items(), key=lambda pair: -geometric(pair[1].values())):
        best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
        lost = sum(gain < 1 for gain in gains.values())
        edges = (f"{gains[best]:.2f} ({best})", f"{gains[worst]:.2f} ({worst})")
        own = [row for row in content["rows"] if row["operator"] == text]
        peak = statistics.median(of_peak(row, content["peaks"]) for row in own) if "peaks" in content else None
        mean = f"{geometric(gains.values()):.2f}"
        rows.append([f"`{text}`", len(gains), mean, *edges, lost, *_roofline(own), f"{peak:.0%}" if peak else "-"])
    peers = sorted({peer for row in content["rows"] for peer in row["ms"]} - {"ours"})
    overall = geometric(gain for gains in gains_of.values() for gain in gains.values())
    head = ["operator", "layers", "geometric mean", "best", "worst", "losses", "of the roofline, median",
            "speed-up at the roofline", "of peak flops, median"]  # fmt: skip
    masked = "ONNX Runtime cannot be told to leave instructions out. " if content["machine"].get("max_isa") else ""
    return page(
        f"Geometric mean over all layers: {overall:.2f}. Peers: {', '.join(peers)}. {masked}".strip(),
        table(head, rows, "lrrllrrrr"),
        *_examples(content),
        f"{machine(content)}{_versions(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()


def _versions(*entries: dict[str, Any]) -> str:
    """The versions of the peers that the entries name; a peer measured in several has them all."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for name, number in entry.get("versions", {}).items():
            if number not in found.setdefault(name, []):
                found[name].append(number)
    return "".join(f", {name} {' and '.join(numbers)}" for name, numbers in sorted(found.items()) if name != "compile")


def of_peak(row: dict[str, Any], peaks: dict[str, Any]) -> float:
    """The share of the peak flops at which our kernel computes a row's plain sums."""
    return 2 * row["macs"] / peaks["gflops"] / 1e6 / row["ms"]["ours"]  # type: ignore[no-any-return]


def _is_example(row: dict[str, Any]) -> bool:
    return row["layer"].startswith("Halide's")  # type: ignore[no-any-return]


def _examples(content: dict[str, Any]) -> list[str]:
    """The example of Halide's own repository, beside what its authors state."""
    return [
        f"{row['layer']}, `{row['operator']}`: {of_peak(row, content['peaks']):.0%} of the peak flops of one thread, "
        f"{row['speedup']:.2f} times as fast as {row['best_peer']}. Its authors state about 20 % for their own "
        "schedule, on 16 threads of another processor."
        for row in content["rows"]
        if _is_example(row)
    ]


def _roofline(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Median share of the roofline, and the speed-up over the best peer at the roofline itself."""
    if not all("floor_ms" in row for row in rows):
        return "-", "-"
    shares = sorted(row["of_floor"] for row in rows)
    at_floor = geometric(row["ms"][row["best_peer"]] / row["floor_ms"] for row in rows)
    return f"{shares[len(shares) // 2]:.0%}", f"{at_floor:.2f}"


def engines(stem: str, entries: list[dict[str, Any]]) -> str:
    """Whole networks on our engine, on the best other engine, and the dense network on its best engine."""
    kinds = dict.fromkeys(map(_kind, entries))
    return "\n\n".join(_engines(stem, kind, [e for e in entries if _kind(e) == kind]) for kind in kinds)


def _kind(entry: dict[str, Any]) -> str:
    """The machine without the row's number of threads: rows of one kind stand in one table."""
    return machine({"machine": {key: value for key, value in entry.get("machine", {}).items() if key != "threads"}})


def _engines(stem: str, kind: str, entries: list[dict[str, Any]]) -> str:
    rows, commands = [], []
    for entry in sorted(entries, key=_order):
        found = outcome(entry)
        if found is None:
            continue
        against = f"{found['dense']:.2f} ({found['dense engine']})" if "dense" in found else "-"
        share, peak = (f"{found[key]:.0%}" if key in found else "-" for key in ("share", "peak"))
        faster = f"{found['gain']:.2f} ({found['peer']})"
        rows.append([f"`{entry['model']}`", setting(entry), f"{found['ms']:.3g}", share, peak, faster, against])
        commands.append([f"`{entry['model']}`, {setting(entry)}", f"`{entry['command']}`"])
    clocks = " and ".join(sorted({entry["clock"] for entry in entries}))
    fewest = all(FEWEST in entry.get("command", "") for entry in entries)
    head = ["network", "input, threads", "ours, ms", "of the roofline", "of peak flops",
            "times as fast as its best other engine", "times as fast as the dense network's best engine"]  # fmt: skip
    return page(
        "## Whole networks: our engine against each other engine"
        + (f", `{FEWEST}`" if fewest else "")
        + (", int8" if all(entry.get("dtype") == "int8" for entry in entries) else "")
        + (", ncnn and XNNPACK among them" if any("ncnn" in entry.get("versions", {}) for entry in entries) else "")
        + f", {kind.partition(', torch')[0]}",
        f"Float32 unless the row says another type; interleaved medians in one process ({clocks} time). Above 1 our "
        f"engine is faster. Every engine is called directly: `optimize` takes no part here. {FLOOR}",
        table(head, rows, "llrrrrr"),
        _losses(entries),
        f"{kind}{_versions(*entries)}; `{stem}.json`. The command of each row:",
        table(["row", "command"], commands),
    ).rstrip()


def _losses(entries: list[dict[str, Any]]) -> str:
    """What forms in int8 lose, or ""."""
    lines = [
        f"- `{entry['model']}`, {setting(entry)}: "
        + "; ".join(f"`{form}` {loss:.1e}" for form, loss in entry["losses"].items())
        for entry in entries
        if entry.get("losses")
    ]
    if not lines:
        return ""
    return "\n".join(["Relative squared errors of the forms in int8, on noise (the weights are random):\n", *lines])


def _order(entry: dict[str, Any]) -> tuple[Any, ...]:
    height, _, width = str(entry["size"]).partition("x")
    pixels = int(height) * int(width or height)
    dtype = entry.get("dtype", "float32")
    return entry["model"], dtype != "float32", entry["threads"], entry["batch"], pixels


def setting(entry: dict[str, Any]) -> str:
    """Input shape, threads and, where it is not float32, the dtype of a row."""
    size, dtype = str(entry["size"]), entry.get("dtype", "float32")
    words = f"{entry['batch']}x3x{size if 'x' in size else f'{size}x{size}'}, {entry['threads']}"
    return words if dtype == "float32" else f"{words}, {dtype}"


def outcome(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Our time, the gain over the best peer and over the dense network's best engine; None where one was not timed."""
    ours = entry["times"].get(f"{entry['model']}, fused", {}).get("median_ms")
    peers = _medians(entry, entry["model"])
    peers.pop("fused", None)
    if ours is None or not peers:
        return None
    peer = min(peers, key=peers.__getitem__)
    found = {"ms": ours, "peer": peer, "peer ms": peers[peer], "gain": peers[peer] / ours, "peers": peers}
    if dense := _medians(entry, entry.get("against") or "-"):
        engine = min(dense, key=dense.__getitem__)
        found |= {"dense": dense[engine] / ours, "dense engine": engine, "dense ms": dense[engine]}
    if floor := entry.get("floors", {}).get(entry["model"]):
        found["share"], found["peak"] = floor["ms"] / ours, floor["compute_ms"] / ours
    return found


def _medians(entry: dict[str, Any], model: str) -> dict[str, float]:
    """Engine -> median ms of one model of an entry."""
    return {
        name.removeprefix(f"{model}, "): timed["median_ms"]
        for name, timed in entry["times"].items()
        if name.startswith(f"{model}, ")
    }


def choices(stem: str, content: dict[str, Any]) -> str:
    """What `optimize` chose, against the best peer in paired rounds: networks, then layers by operator."""
    rows = content["rows"]
    whole = [row for row in rows if row["operator"] == "network"]
    single = [row for row in rows if row["operator"] != "network"]
    lost = [
        f"`{row['operator']}` at {row['place']} {row['ratio']:.4f} ({row['low']:.3f} to {row['high']:.3f})"
        for row in sorted(rows, key=lambda row: row["ratio"])
        if row["ratio"] < LIMIT
    ]
    groups: dict[str, list[float]] = {}
    for row in single:
        groups.setdefault(row["operator"], []).append(row["ratio"])
    cells = [
        [f"`{name}`", len(found), f"{geometric(found):.2f}", f"{max(found):.2f}", f"{min(found):.2f}"]
        for name, found in sorted(groups.items(), key=lambda pair: -geometric(pair[1]))
    ]
    named = [
        [
            f"`{row['place']}`",
            row["chosen"],
            row["peer"],
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
        ]
        for row in sorted(whole, key=lambda row: -row["ratio"])
    ]
    commits = " and ".join(sorted({row["commit"] for row in rows}))
    surely = sum(row["high"] < LIMIT for row in rows)
    clock = " Computing time, on a busy machine." if all(row.get("clock") == "process" for row in rows) else ""
    return page(
        "## What `optimize` chose, against the best peer",
        "`optimize` chooses, then its choice and the best peer take turns in rounds of their own. Below 1 the choice "
        f"cost time. Layers are convolution, BatchNorm and ReLU as a user has them, called in NCHW.{clock}",
        table(["network", "chosen", "best peer", "times as fast", "two standard errors"], named, "lllrr"),
        table(["operator", "layers", "geometric mean", "best", "worst"], cells, "lrrrr"),
        f"{len(single)} layers, geometric mean {geometric(row['ratio'] for row in single):.2f}. "
        + (
            f"Below {LIMIT}: {'; '.join(lost)}. Beyond two standard errors: {surely}."
            if lost
            else f"None below {LIMIT}."
        ),
        f"{machine(content)}{_versions(content)}; `python -m benchmarks.choices`, at commits {commits}, `{stem}.json`.",
    ).rstrip()


def default_budget(stem: str, content: dict[str, Any]) -> str:
    """What `optimize` reached and chose with its default budget."""
    cells = [
        [
            f"`{row['network']}`",
            f"{row['dtype']}, {row['threads']}",
            f"{row['seconds']:.0f}",
            row["missed"] or "none",
            row["chosen"],
            f"{row['ms']:.3g}",
            f"{row['ratio']:.3f} ({row['peer']})",
        ]
        for row in content["rows"]
    ]
    budget = inspect.signature(optimize).parameters["budget_s"].default
    late = sum(row["seconds"] > budget for row in content["rows"])
    below = sum(row["ratio"] < LIMIT for row in content["rows"])
    head = [
        "network",
        "dtype, threads",
        "seconds",
        "engines not reached",
        "chosen",
        "ms",
        "times as fast as the best peer",
    ]
    kind = kind_of_machine(content)
    cold = "no kernel was compiled before" if content["cold"] else "kernels were compiled before"
    return page(
        "## `optimize` within its default budget" + ("" if stem == "default_budget" else f", {kind}"),
        f"On {kind}. A process a row, as a user calls it; {cold}. "
        f"{below} of {len(cells)} rows are below {LIMIT}. {late} calls took longer than the budget of {budget:g} s: "
        "an engine that has begun is finished.",
        table(head, cells, "llrllrr"),
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()


def geometric(values: Iterable[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))
