"""Register tiles of a 1×1: the choice of the cost model (`kernels/cpu/tuning/`) against other tiles.

    python -m benchmarks.cpu_tiles [--shapes 96,24,56 ...] [--tiles 8,32,16 ...]

A shape is C,O,side of the map; a tile is pixels,block,lanes. Each tile is compiled (0.3 s) and timed in turns with the
others; the least CPU time counts. Prints GFLOP/s, and the model's choice as a share of the best.
"""

import argparse
from typing import Any

import torch

from benchmarks.cpu_kernels import keep_freed_memory, least
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.tuning.cost_model import matrix_tile
from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.ops.separable import Separable
from leanconv.table import table

SHAPES = ("32,64,64", "128,128,28", "512,512,14", "1024,1024,7", "96,24,56", "240,40,28", "16,96,56", "17,23,31")
TILES = ("4,64,16", "6,64,16", "8,32,16", "9,48,16", "12,32,16", "14,32,16", "14,16,16", "8,16,16", "12,8,8", "8,24,8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--tiles", nargs="+", default=list(TILES))
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing per shape")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    tiles = [Tile(*map(int, text.split(","))) for text in arguments.tiles]
    rows = [row(*map(int, shape.split(",")), tiles, arguments.seconds) for shape in arguments.shapes]
    columns = ["C O side", *arguments.tiles, "the model's", "of the best"]
    print(table(columns, rows, title="GFLOP/s of a 1×1, one thread, fp32, batch 1"))


@torch.no_grad()
def row(c: int, o: int, side: int, tiles: list[Tile], seconds: float) -> list[str]:
    """GFLOP/s of each tile and of the model's choice, and the choice's share of the best."""
    x = torch.randn(1, c, side, side).contiguous(memory_format=torch.channels_last)
    weights, form = [torch.randn(o, c), torch.randn(o)], Separable((c,), (), o, True, "relu")
    chosen = matrix_tile(this_cpu(), o, side * side, c, True)
    calls: dict[str, Any] = {}
    for tile in {*tiles, chosen}:
        bound = with_tile(form, weights, tile)
        calls[str(tile)] = lambda bound=bound: bound([x])
        bound([x])
    times = least(calls, seconds)
    speeds = {name: 2 * c * o * side * side / ms / 1e6 for name, ms in times.items()}
    mine = speeds[str(chosen)]
    words = f"{mine:.0f} ({chosen.pixels},{chosen.block},{chosen.lanes})"
    shown = [f"{speeds[str(tile)]:.0f}" for tile in tiles]
    return [f"{c} {o} {side}", *shown, words, f"{mine / max(speeds.values()):.0%}"]


def with_tile(form: Separable, weights: list[torch.Tensor], tile: Tile) -> BoundSeparable:
    """The bound 1×1 with this tile instead of the model's choice."""

    class Fixed(BoundSeparable):
        def matrix_tile(self, *sizes: Any) -> Tile:
            return tile

    return Fixed(form, weights)


if __name__ == "__main__":
    main()
