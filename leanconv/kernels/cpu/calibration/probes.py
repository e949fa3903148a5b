"""Measure a core's speeds: small loops in C for its ports and caches, and kernels of each algorithm for what it costs.

All of them take turns, and the least time of each counts: what other processes take away shows in none of them. Every
time is divided by that of a multiply-add, so the clock frequency does not matter.
"""

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import LeanconvError
from leanconv.kernels.cpu.bound.base import Bound
from leanconv.kernels.cpu.bound.grouped import BoundGrouped
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.pipelines.element import FLOAT32
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.padded import GroupedCore
from leanconv.kernels.cpu.runtime.huge_pages import allocate
from leanconv.kernels.cpu.runtime.launch import LaunchBatch
from leanconv.kernels.cpu.tuning.cost_model import matrix_cycles, matrix_tile, matrix_tiles, speeds_of, strassen_cycles
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.kernels.cpu.tuning.direct_or_winograd import direct_algorithm, winograd_algorithm
from leanconv.kernels.cpu.tuning.speeds import Speeds, within_bounds
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable

SOURCE = Path(__file__).parent / "probes.c"
# The functions of probes.c: rows and vectors of their register tile, the depth of its sums, and calls of it in a turn.
# The weights take 12 KiB at most: they stay in any L1 cache.
LOOPS = {"wide": (6, 2, 96, 400), "narrow": (6, 2, 96, 400), "chain": (1, 1, 96, 800), "loads": (1, 8, 24, 1600),
         "spreads": (8, 1, 96, 400)}  # fmt: skip
# Launches of a kernel in one call, which itself takes a microsecond or two. Only short calls are sometimes undisturbed:
# a call is at most about a millisecond.
LAUNCHES = {"tile": 8, "strassen": 1, "winograd": 2, "l1_winograd": 4}
# CPU seconds of turns, and the least number of them, for one look; the median of some looks counts.
_LOOK_S, _ROUNDS, _LOOKS = 0.1, 4, 5
_FAR, _NEAR = 64 << 20, 4 << 20  # the most bytes that are read, from memory and from the last cache
AROUND = (1, 1, 1, 1)
Part = Callable[[Cpu], dict[str, float]]


def measure(cpu: Cpu, limit_s: float, known: Mapping[str, float], *, wall_s: float = math.inf) -> dict[str, float]:
    """The figures of this machine's `Speeds`, for code as `cpu` describes it; without those that time did not suffice
    for.

    Args:
        limit_s: CPU seconds of this thread; a part of the measurement that has begun is finished.
        known: figures that were measured before.
        wall_s: likewise, seconds: on a busy machine they are more.
    Raises: LeanconvError where nothing can be compiled.
    """
    found = dict(known)
    starts = [(time.thread_time, time.thread_time(), limit_s), (time.monotonic, time.monotonic(), wall_s)]
    with torch.no_grad(), build.not_listed(), build.compiled_for(cpu.isa):
        core = _Core(cpu)
        parts: dict[str, Part] = {
            "narrow": core.ports, "memory_bytes": core.memory, "tile": core.tiles, "strassen": core.strassen,
            "winograd": core.winograd, "l1_winograd": core.l1_winograd,
        }  # fmt: skip
        for name, part in parts.items():
            # A fifth of the limit: as much as a part takes.
            if name not in found and all(now() - start < 0.8 * limit for now, start, limit in starts):
                seen = part(replace(cpu, speeds=Speeds(**found)))
                found |= {name: within_bounds(name, value) for name, value in seen.items()}
    return found


def least_ns(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least CPU time of each call, in turns."""
    found = dict.fromkeys(calls, math.inf)
    end, rounds = time.thread_time() + _LOOK_S, 0
    while rounds < _ROUNDS or time.thread_time() < end:
        for name, call in calls.items():
            start = time.thread_time_ns()
            call()
            found[name] = min(found[name], time.thread_time_ns() - start)
        rounds += 1
    return found


class _Core:
    """The probes of one core. Each part returns speeds by name; the multiply-adds take turns with all of them."""

    def __init__(self, cpu: Cpu) -> None:
        lib = build.c_library(SOURCE, cpu.isa, [f"lc_{name}" for name in (*LOOPS, "read")])
        if lib is None:
            raise LeanconvError("no folder can keep the library of probes")
        self._lib, self._zeros = lib, torch.zeros(1 << 14)
        self._random = torch.Generator().manual_seed(0)

    def _loop(self, name: str, depth: int) -> Callable[[], object]:
        """A turn of a function of probes.c."""
        address = ctypes.c_void_p(self._zeros.data_ptr())
        out = ctypes.c_void_p(self._zeros.data_ptr() + (48 << 10))
        arguments = ctypes.c_int64(LOOPS[name][3]), ctypes.c_int64(depth), address, address, out
        return lambda: self._lib[f"lc_{name}"](*arguments)

    def _loops(self, *names: str) -> dict[str, Callable[[], object]]:
        """Turns of whole and of half depth: their difference is the sums alone."""
        return {f"{n} {depth}": self._loop(n, depth) for n in names for depth in (LOOPS[n][2], LOOPS[n][2] // 2)}

    def _timed(self, calls: dict[str, Callable[[], object]], *names: str) -> dict[str, float]:
        """Cycles of each call, and of one step of the loops `names`: the median of some looks."""
        turns = self._loops("wide", *names) | calls
        looks = [self._cycles(least_ns(turns), calls, names) for _ in range(_LOOKS)]
        return {name: statistics.median(look[name] for look in looks) for name in looks[0]}

    @staticmethod
    def _cycles(times: dict[str, float], calls: Iterable[str], names: Iterable[str]) -> dict[str, float]:
        def step(name: str) -> float:
            _, _, depth, repeats = LOOPS[name]
            return (times[f"{name} {depth}"] - times[f"{name} {depth // 2}"]) / (depth // 2) / repeats

        unit = step("wide") / 12
        return {name: times[name] / unit for name in calls} | {name: step(name) / unit for name in names}

    def ports(self, cpu: Cpu) -> dict[str, float]:
        """Multiply-adds in flight, one after the other, on half the width; and loads."""
        found = self._timed({}, "narrow", "chain", "loads", "spreads")
        vectors = LOOPS["loads"][1]  # of one row; as many rows of one vector in the other loop
        load = (vectors * found["loads"] - found["spreads"]) / (vectors**2 - 1)
        narrow = found["narrow"] / 12 if cpu.lanes > 4 else 1.0
        return {"narrow": narrow, "latency": found["chain"], "load": load, "spread": found["loads"] - vectors * load}

    def memory(self, cpu: Cpu) -> dict[str, float]:
        """Bytes that are read in a cycle: from the last cache, as many as large weights have, and from memory."""
        near, far = max(2 * cpu.l2, min(cpu.l3 // 4, _NEAR)), max(2 * cpu.l2, min(max(2 * cpu.l3, _FAR // 2), _FAR))
        buffer = allocate(far).zero_()
        address = ctypes.c_void_p(buffer.data_ptr())
        sizes = {"l3_bytes": near, "memory_bytes": far}
        found = self._timed({name: self._reading(address, size) for name, size in sizes.items()})
        return {name: size / found[name] for name, size in sizes.items()}

    def _reading(self, address: ctypes.c_void_p, size: int) -> Callable[[], object]:
        return lambda: self._lib.lc_read(ctypes.c_int64(1), address, ctypes.c_int64(size // 4))

    def tiles(self, cpu: Cpu) -> dict[str, float]:
        """What a register tile takes beside its products, from 1×1s of few channels and of many."""
        rows, vectors, _, _ = LOOPS["wide"]
        tile, count, few, many = Tile(rows, vectors * cpu.lanes, cpu.lanes), 640, 8, 40
        calls = {
            name: self._pointwise("tile", cpu, depth, tile.block, count * rows, tile)
            for name, depth in (("few", few), ("many", many))
        }
        found = self._timed(calls)
        step = (found["many"] - found["few"]) / (many - few)
        return {"tile": (found["few"] - few * step) / count / LAUNCHES["tile"]}

    def strassen(self, cpu: Cpu) -> dict[str, float]:
        """A 1×1 of 256 channels, direct and by Strassen's algorithm."""
        sizes = width, pixels, depth = 256, 784, 256
        cpu = replace(cpu, speeds=replace(speeds_of(cpu), memory_bytes=math.inf))  # all its weights are in the caches
        tile = min(matrix_tiles(cpu), key=lambda tile: strassen_cycles(cpu, tile, *sizes))
        plain = matrix_tile(cpu, *sizes, True)
        found = self._timed({
            "direct": self._pointwise("strassen", cpu, depth, width, pixels, plain),
            "strassen": self._pointwise("strassen", cpu, depth, width, pixels, plain, tile),
        })  # fmt: skip
        direct = matrix_cycles(cpu, plain, *sizes, True)
        return {"strassen": _share(cpu, "strassen", found, direct, lambda cpu: strassen_cycles(cpu, tile, *sizes))}

    def winograd(self, cpu: Cpu) -> dict[str, float]:
        """A 3×3 of four groups with a 1×1 beside it."""
        return self._grouped(cpu, "winograd", Grouped((64,), 64, (3, 3), padding=AROUND, groups=4, pointwise=True))

    def l1_winograd(self, cpu: Cpu) -> dict[str, float]:
        """A 3×3 of groups whose transformed maps stay in the L1 cache."""
        return self._grouped(cpu, "l1_winograd", Grouped((32,), 32, (3, 3), padding=AROUND, groups=4))

    def _grouped(self, cpu: Cpu, name: str, form: Grouped) -> dict[str, float]:
        size, core = (28, 28), GroupedCore(form, form.channels, 0, FLOAT32)
        c = form.out_channels
        weights = [self._drawn(c, c // form.groups, 3, 3), *[self._drawn(c, c, 1, 1)] * form.pointwise]
        x = self._drawn(1, c, *size).contiguous(memory_format=torch.channels_last)
        calls = {}
        for method in ("direct", "winograd"):
            bound = BoundGrouped(form, weights, Target(cpu, "lean"))
            bound.method = method
            calls[method] = _call(LAUNCHES[name], bound, x, None)
        found = self._timed(calls)
        found[name] = found.pop("winograd")
        direct = direct_algorithm(cpu, core, 1, size, _first, 1).cycles
        return {
            name: _share(cpu, name, found, direct, lambda cpu: winograd_algorithm(cpu, core, 1, size, _first, 1).cycles)
        }

    def _pointwise(
        self, name: str, cpu: Cpu, depth: int, width: int, pixels: int, tile: Tile, strassen: Tile | None = None
    ) -> Callable[[], object]:
        """A 1×1 with these tiles, for the figure `name`."""

        class Fixed(BoundSeparable):
            def matrix_tile(self, *_: Any) -> Tile:
                return tile

            def strassen_tile(self, *_: Any) -> Tile | None:
                return strassen

        bound = Fixed(Separable((depth,), (), width), [self._drawn(width, depth)], Target(cpu, "lean"))
        x = self._drawn(1, depth, 1, pixels).contiguous(memory_format=torch.channels_last)
        return _call(LAUNCHES[name], bound, x, None, None)

    def _drawn(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, generator=self._random, dtype=torch.float32)


def _share(cpu: Cpu, name: str, found: dict[str, float], direct: float, model: Callable[[Cpu], float]) -> float:
    """What makes the model's ratio to the direct sums the measured one: the speed `name`."""
    none, one = (model(replace(cpu, speeds=replace(speeds_of(cpu), **{name: value}))) for value in (0.0, 1.0))
    return (found[name] * direct / found["direct"] - none) / (one - none) if one > none else math.nan


def _first(_: Any, tiles: Any, __: Any) -> Any:
    return tiles


def _call(launches: int, bound: Bound, *maps: Tensor | None) -> Callable[[], object]:
    """Launches of the kernel for these maps in one thread, on memory that exists; it was called once before."""
    prepared = bound.prepared(*maps)
    if not prepared.loop.native:
        raise LeanconvError("kernels run in this process alone")
    launch, kept = prepared.launch(), [x for x in maps if x is not None]
    kept.append(prepared.results()[0])
    for index, tensor in enumerate(kept):
        launch.put(index, tensor)
    batch = LaunchBatch([launch] * launches, 1)

    def call(_kept: list[Tensor] = kept) -> None:  # a launch holds addresses alone
        batch()

    call()
    return call
