"""What the cost model of the CPU kernels chooses (`kernels/cpu/tuning/`), against the best of its first choices.

    python -m benchmarks.cpu_tiles [--tiles 512,512,14 ...] [--groups 128,4,28,1 ...] [--top 5]

Three models choose: with this machine's calibrated speeds, with neutral ones, and with the constants that stood in the
code before there was a calibration (of a Zen 4 core with AVX-512; a tile as one of 16 vectors).

Tiles: a 1×1 of C,O,side of the map. The first few register tiles of the calibrated model, those of the other models and
Strassen's algorithm with its best tile are compiled (0.3 s each) and timed in turns; the least CPU time counts.
Groups: a 3×3 of C to C channels in G groups, side, and whether a 1×1 stands beside it: direct and by Winograd.

A figure is the share of the best that a model's choice reaches: 1.00 if it chose the best. One thread, fp32, batch 1.
Under `LEANCONV_MAX_CPU_ISA=avx2` the same with AVX2 alone. Writes benchmarks/results/cpu_tiles.json, or its like.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_of, results_of
from benchmarks.cpu_kernels import keep_freed_memory, least
from benchmarks.operators import commit
from leanconv.files import write_json
from leanconv.kernels import Target, this_cpu
from leanconv.kernels.cpu.bound.base import PreparedKernel
from leanconv.kernels.cpu.bound.grouped import BoundGrouped
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.calibration.kept import calibrated
from leanconv.kernels.cpu.pipelines.element import FLOAT32
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.padded import GroupedCore
from leanconv.kernels.cpu.runtime.launch import LaunchBatch
from leanconv.kernels.cpu.tuning.cost_model import matrix_cycles, matrix_tile, matrix_tiles, strassen_tile
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.kernels.cpu.tuning.direct_or_winograd import choose_direct_or_winograd
from leanconv.kernels.cpu.tuning.speeds import Speeds
from leanconv.measure.device import describe
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable
from leanconv.table import table

TILES = (
    "32,64,64", "128,128,28", "256,256,28", "512,512,14", "1024,1024,7", "96,24,56", "240,40,28", "16,96,56",
    "72,20,28", "17,23,31",
)  # fmt: skip
GROUPS = ("32,4,56,1", "64,4,56,0", "128,4,28,1", "256,4,14,1", "512,4,7,1", "128,2,28,0", "64,8,28,0")
BEFORE = Speeds(
    narrow=0.5, load=1.0, latency=4.0, tile=44.0, l3_bytes=16.0, memory_bytes=12.0, strassen=1.2,
    winograd=0.8, l1_winograd=0.4,
)  # fmt: skip
AROUND, LAUNCHES = (1, 1, 1, 1), 8
Choice = tuple[str, Tile | None]  # "direct" or an algorithm, and its tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", nargs="*", default=list(TILES))
    parser.add_argument("--groups", nargs="*", default=list(GROUPS))
    parser.add_argument("--top", type=int, default=5, help="first choices of the calibrated model that are timed")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing a row")
    parser.add_argument("--out", type=Path, default=results_of("cpu_tiles"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    cpu = calibrated(Target()).cpu
    models = {"calibrated": cpu, "neutral": replace(cpu, speeds=Speeds()), "before": replace(cpu, speeds=BEFORE)}
    print(f"calibrated: {cpu.speeds}", flush=True)
    rows = []
    for text in arguments.tiles:
        rows.append(tiles_row(*map(int, text.split(",")), models, arguments.top, arguments.seconds))
    for text in arguments.groups:
        rows.append(groups_row(*map(int, text.split(",")), models, arguments.seconds))
    print(show(rows, models))
    command = command_of("cpu_tiles")
    about = {"command": command, "commit": commit(), "machine": describe("cpu"), "speeds": cpu.speeds.to_dict()}
    write_json(arguments.out, about | {"rows": rows})


def show(rows: list[dict[str, Any]], models: dict[str, Cpu]) -> str:
    """Every row, and how often each model's choice is within 3 % of the best."""
    lines = [
        [row["layer"], row["best"], *(f"{row[name]:.2f} {row['choice'][name]}" for name in models)] for row in rows
    ]
    near = "; ".join(f"{name} {sum(row[name] >= 0.97 for row in rows)} of {len(rows)}" for name in models)
    note = f"within 3 % of the best: {near}"
    return table(["layer", "best", *models], lines, title="share of the best, and the choice", note=note)


@torch.no_grad()
def tiles_row(c: int, o: int, side: int, models: dict[str, Cpu], top: int, seconds: float) -> dict[str, Any]:
    """A 1×1: the share of the best that each model's tile or algorithm reaches."""
    pixels, cpu = side * side, models["calibrated"]
    first = sorted(matrix_tiles(cpu), key=lambda tile: matrix_cycles(cpu, tile, o, pixels, c, True))[:top]
    chosen = {name: one_by_one(model, o, pixels, c) for name, model in models.items()}
    listed: set[Choice] = {("direct", tile) for tile in first} | set(chosen.values())
    if (
        tile := strassen_tile(replace(cpu, speeds=replace(cpu.speeds or Speeds(), strassen=0.0)), o, pixels, c)
    ) is not None:
        listed.add(("strassen", tile))
    weights, form = [torch.randn(o, c), torch.randn(o)], Separable((c,), (), o, True, "relu")
    x = torch.randn(1, c, side, side).contiguous(memory_format=torch.channels_last)
    calls = {choice: launched(with_choice(form, weights, choice).prepared(x, None, None), x) for choice in listed}
    return timed(f"1×1 {c} {o} {side}", calls, chosen, seconds)


def one_by_one(cpu: Cpu, width: int, pixels: int, depth: int) -> Choice:
    """What a model chooses for a 1×1."""
    if (tile := strassen_tile(cpu, width, pixels, depth)) is not None:
        return "strassen", tile
    return "direct", matrix_tile(cpu, width, pixels, depth, True)


@torch.no_grad()
def groups_row(
    c: int, groups: int, side: int, pointwise: int, models: dict[str, Cpu], seconds: float
) -> dict[str, Any]:
    """A 3×3 of groups: the share of the best that each model's algorithm reaches, with the calibrated model's tiles."""
    form = Grouped((c,), c, (3, 3), padding=AROUND, groups=groups, pointwise=bool(pointwise))
    weights = [torch.randn(c, c // groups, 3, 3), *[torch.randn(c, c, 1, 1)] * pointwise]
    x = torch.randn(1, c, side, side).contiguous(memory_format=torch.channels_last)
    core = GroupedCore(form, form.channels, 0, FLOAT32)
    chosen, calls = {}, {}
    for name, cpu in models.items():
        algorithm = choose_direct_or_winograd(
            Target(cpu, "lean"), core, 1, (side, side), lambda _, tiles, __: tiles, None
        )
        chosen[name] = (algorithm.method, None)
    for method in ("direct", "winograd"):
        bound = BoundGrouped(form, weights, Target(models["calibrated"], "lean"))
        bound.method = method
        calls[method, None] = launched(bound.prepared(x, None), x)
    return timed(f"3×3 {c} {groups} groups {side}" + " + 1×1" * pointwise, calls, chosen, seconds)


def timed(
    layer: str, calls: dict[Choice, Callable[[], object]], chosen: dict[str, Choice], seconds: float
) -> dict[str, Any]:
    """A row from the calls' times."""
    times = least({words(choice): call for choice, call in calls.items()}, seconds)
    best = min(times, key=times.__getitem__)
    shares = {name: times[best] / times[words(choice)] for name, choice in chosen.items()}
    return {
        "layer": layer,
        "best": best,
        "choice": {name: words(choice) for name, choice in chosen.items()},
        **shares,
        "ms": {name: ms / LAUNCHES for name, ms in times.items()},
    }


def words(choice: Choice) -> str:
    """A choice in words: its algorithm if it is not direct; pixels, block and lanes of its tile."""
    method, tile = choice
    return f"{method} {tile.pixels},{tile.block},{tile.lanes}" if tile else method


def launched(prepared: PreparedKernel, x: torch.Tensor) -> Callable[[], object]:
    """`LAUNCHES` of the kernel alone, on memory that exists: some layers take as long as a call."""
    y, launch = prepared.results()[0], prepared.launch()
    launch.put(0, x)
    launch.put(1, y)
    batch = LaunchBatch([launch] * LAUNCHES, 1)

    def call(_kept: tuple[torch.Tensor, ...] = (x, y)) -> None:  # a launch holds addresses alone
        batch()

    return call


def with_choice(form: Separable, weights: list[torch.Tensor], choice: Choice) -> BoundSeparable:
    """The bound 1×1 with this algorithm and tile instead of the model's."""
    method, tile = choice

    class Fixed(BoundSeparable):
        def matrix_tile(self, *_: Any) -> Tile:
            assert tile is not None
            return tile

        def strassen_tile(self, *_: Any) -> Tile | None:
            return tile if method == "strassen" else None

    return Fixed(form, weights, Target(this_cpu(), "lean"))


if __name__ == "__main__":
    main()
