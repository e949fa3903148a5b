"""Run the fused engine at other image sizes: count the kernels that it compiles for them, and their speed-up.

    python -m benchmarks.fused_sizes timm:mobilenetv3_small_100 [--prepared 224] [--sizes 192 160 256 200 320]

A network prepared for one size is called at other sizes, and compared with itself prepared for each of them. The table
shows the compiled kernels and their processor time, with an empty cache. Both forms are then timed in turns. The ratio
of the shortest processor times is above 1 if the one prepared for the size is faster. One thread; every block uses a
kernel if there is one.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import leanconv as lc
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.lowering.autotune import autotune
from leanconv.engine.fused.passes.fusion import rewrite
from leanconv.engine.workbench import Workbench
from leanconv.kernels.cpu.compilation import cache
from leanconv.table import table


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prepared", type=int, default=224)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 160, 256, 200, 320])
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEANCONV_CACHE"] = str(Path(folder) / "kernels")
        print(sizes(lc.load(arguments.model).eval(), arguments.prepared, arguments.sizes, arguments.rounds))


def sizes(model: nn.Module, prepared: int, others: list[int], rounds: int) -> str:
    """Measure a row per size, in this order. Later sizes reuse the kernels of earlier ones."""
    shared, first = compiled(lambda: program(model, prepared))
    rows = [[str(prepared), *first, "", "", "", ""]]
    for size in others:
        x = torch.randn(1, 3, size, size)
        _, new = compiled(lambda x=x: shared(x))
        own, anew = compiled(lambda size=size: program(model, size))
        times: dict[Any, list[float]] = {shared: [], own: []}
        for _ in range(rounds):
            for each, seen in times.items():
                start = time.thread_time()
                each(x)
                seen.append(time.thread_time() - start)
        best = [min(seen) for seen in times.values()]
        rows.append([str(size), *new, *anew, f"{best[1] * 1e3:.2f}", f"{best[0] / best[1]:.3f}"])
    columns = ["size", "kernels", "s", "kernels if prepared for it", "s", "ms", "ratio"]
    return table(columns, rows, note=f"prepared for {prepared}, one thread, float32, batch 1")


def program(model: nn.Module, size: int) -> Program:
    """Build the model's program on kernels and call it twice, so that its plan is complete."""
    x = torch.randn(1, 3, size, size)
    graph = rewrite(to_graph(Workbench(model, (x,), {}, 1).program))
    found = Program(graph, autotune(graph, seconds=0.0)[0])
    found(x)
    found(x)
    return found


def compiled(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return the result of `run`, the number of kernels that it compiled, and their processor time in seconds."""
    durations: list[float] = []
    real = cache.fetch

    def fetch(name: str, build: Callable[[Path], object], where: Path) -> Path:
        def counted(path: Path) -> object:
            start = sum(os.times()[:4])  # includes the C compiler's time
            found = build(path)
            durations.append(sum(os.times()[:4]) - start)
            return found

        return real(name, counted, where)

    cache.fetch = fetch
    try:
        found = run()
    finally:
        cache.fetch = real
    return found, [str(len(durations)), f"{sum(durations):.2f}"]


if __name__ == "__main__":
    main()
