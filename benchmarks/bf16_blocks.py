"""Time each block of a network in bfloat16: our kernels, our products on tiles, oneDNN, in turns.

    python -m benchmarks.bf16_blocks "leanconv:unet?base=32&conv=splconv" [--size 256]

Times are of one call of the block alone, by the computing time of one thread (`--threads 2`: wall time). "tiles" runs
on AMX where it is, else on AVX512-BF16.

    python -m benchmarks.bf16_blocks "leanconv:unet?base=32&conv=splconv" --arithmetic

counts what a core with AMX cannot do faster, whatever the program: stencils in vectors, products on tiles.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import leanconv as lc
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.ir.graph import Node
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.fused.lowering.kernels import KernelRun, SplitRun
from leanconv.engine.fused.lowering.primitives import primitive
from leanconv.engine.fused.lowering.samples import geometry, sample
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.fused.passes.precision import lower_precision
from leanconv.engine.workbench import Workbench
from leanconv.kernels import backend
from leanconv.measure.device import label
from leanconv.measure.timing.latency import interleave
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable
from leanconv.table import table

# Multiply-adds a cycle: two instructions on vectors of 16 float32; a tile product of 16 × 16 × 32 takes 16 cycles
# (Intel's optimization manual, chapter on AMX).
VECTORS, TILES = 32, 1024
FORMS = ("kernel", "tiles", "merged", "split", "tiles+tiles", "onednn")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each block")
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--arithmetic", action="store_true", help="count, and measure nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.randn(1, 3, arguments.size, arguments.size)
    graph = fuse(to_graph(Workbench(lc.load(arguments.model).eval(), (x,), {}, 1).program))
    lower_precision(graph, torch.bfloat16)
    kept, counts = {}, Counter(geometry(node) for node in graph.nodes if node.op.is_step)
    for node in graph.nodes:
        if node.op.is_step and any(form.name == "kernel" for form in IMPLEMENTATIONS[type(node.op)]):
            kept.setdefault(geometry(node), node)
    if arguments.arithmetic:
        print(arithmetic([node for node in graph.nodes if node.op.is_step]))
        return
    with backend().compiling_ahead():
        for node in kept.values():
            calls(node, arguments.forms)
    rows, totals = [], dict.fromkeys(arguments.forms, 0.0)
    best = 0.0
    for key, node in kept.items():
        found = calls(node, arguments.forms)
        clock = "cpu" if arguments.threads == 1 else "wall"
        timings = interleave(found, budget_s=arguments.seconds, warmup=1, max_rounds=100, clock=clock, primed=True)
        times = {name: timing.median_ms for name, timing in timings.items()}
        for name in totals:
            totals[name] += counts[key] * times.get(name, min(times.values()))
        best += counts[key] * min(times.values())
        size = "x".join(map(str, node.shape))
        cells = [f"{times[name]:.3f}" if name in times else "-" for name in arguments.forms]
        ratio = f"{times['kernel'] / times['tiles']:.2f}" if {"kernel", "tiles"} <= times.keys() else "-"
        rows.append([repr(node.op), size, str(counts[key]), *cells, ratio])
    sums = [f"{totals[name]:.2f}" for name in arguments.forms]
    rows.append(["all of them", "", "", *sums, f"{totals['kernel'] / best:.2f}" if "kernel" in totals else "-"])
    words = "ms; last line: with every block so, and kernel over the best of each"
    note = f"{words}; {label()}"
    print(table(["block", "result", "times", *arguments.forms, "kernel / tiles"], rows, note=note))


def arithmetic(nodes: list[Node]) -> str:
    """The cycles of an AMX core for the multiply-adds of these nodes: in vectors, on tiles, one after the other."""
    vectors = products = 0
    for node in nodes:
        form = found[0] if (found := primitive(node)) else None
        if form is None or isinstance(form, MaxPool):
            continue
        h, w = node.inputs[0].shape[2:]
        macs, stencils = form.macs(h, w), 0
        if isinstance(form, Separable):
            p, q = form.size(h, w)
            stencils = macs - p * q * form.middle * (form.out_channels or 0)
        elif isinstance(form, Grouped) and form.groups == form.out_channels:
            stencils = macs
        vectors, products = vectors + node.shape[0] * stencils, products + node.shape[0] * (macs - stencils)
    cycles = [vectors / VECTORS, products / TILES]
    rows = [["multiply-adds, M", f"{vectors / 1e6:.1f}", f"{products / 1e6:.1f}", ""],
            ["cycles, M", *(f"{x / 1e6:.2f}" for x in cycles), f"{sum(cycles) / 1e6:.2f}"]]  # fmt: skip
    note = (
        f"{VECTORS} float32 multiply-adds a cycle in vectors, {TILES} of bfloat16 on tiles; loads and stores are free"
    )
    return table(["", "stencils", "products", "together"], rows, note=note)


def on_tiles(node: Node) -> KernelRun | None:
    """The products on tiles, also by AVX512-BF16, which `optimize` does not try."""
    found = primitive(node)
    bound = backend().bind_to_tiles(*found) if found else None
    return KernelRun(node, bound, found[0]) if found and bound else None


def calls(node: Node, names: list[str]) -> dict[str, Callable[[], Any]]:
    """The node's implementations as a plan calls them."""
    inputs: list[Tensor] = [sample(x) for x in node.inputs]
    found: dict[str, Callable[[], Any]] = {}
    for form in IMPLEMENTATIONS[type(node.op)]:
        try:
            run = (on_tiles if form.name == "tiles" else form.make)(node) if form.name in names else None
        except ValueError:  # a form that is not there for this block
            continue
        if isinstance(run, KernelRun | SplitRun):
            if (call := run.launch(inputs)) is not None:
                found[form.name] = call
            else:
                run.meet(inputs)
        elif run is not None:
            found[form.name] = partial(run, *inputs)
    return found


if __name__ == "__main__":
    main()
