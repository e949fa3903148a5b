"""Where a plan's values lie: one piece of memory, in which two share a place if they are never needed together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.lowering.kernels import KernelRun
from leanconv.kernels.cpu.runtime.transpose import copy_of, to_channels_last, to_contiguous

ALIGN = 64  # bytes; a line of the cache, a vector of AVX-512


class Step(NamedTuple):
    """What runs, the places of what it reads, of its results (second: -1 for none), what is freed after it, and
    whether its result may lie in what it read (a view).
    """

    run: Callable[..., Any]
    reads: tuple[int, ...]
    at: int
    second: int
    frees: tuple[int, ...]
    views: bool

    def into(self, values: list[Any]) -> None:
        """Run it, its result among the values."""
        made = self.run(*[values[i] for i in self.reads])
        if self.second < 0:
            values[self.at] = made
        else:
            values[self.at], values[self.second] = made


class Slot(NamedTuple):
    """A value in the plan's memory, `offset` bytes behind its start."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class Copied(NamedTuple):
    """A map's copy in the other layout, with what a plan asks of a bound kernel's step."""

    program: Any
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    weights: tuple[Tensor, ...] = ()
    average: bool = False


class Native(NamedTuple):
    """A kernel's step for these shapes, or a copy's: the places of its maps and averages, where its results go."""

    step: Any
    maps: tuple[int, ...]
    averages: tuple[int, ...]
    bound: Any
    at: int
    second: int


def laid_out(
    steps: Sequence[Step], values: Sequence[Any], outputs: Sequence[int]
) -> tuple[list[Native | Step], dict[int, Slot], int]:
    """What runs for each step; an offset for every result of a kernel that is not handed out; the size in bytes.

    First fit, in the order of the steps. `values`: as those of a run step by step, their memory left out.
    """
    todo: list[Native | Step] = [_native(step, values) or step for step in steps]
    free_at, bases = _ends(steps, len(values), outputs), _bases(steps)
    slots: dict[int, Slot] = {}
    taken: list[tuple[int, int, int]] = []  # start, stop, last step that needs it
    size = 0
    for now, step in enumerate(steps):
        taken = [piece for piece in taken if piece[2] >= now]
        made = todo[now]
        if not isinstance(made, Native):
            continue
        for place in (step.at, step.second):
            if place < 0 or place in outputs:
                continue
            value: Tensor = values[place]
            length = -(-value.numel() * value.itemsize // ALIGN) * ALIGN
            over = (
                _over_first(made, values, slots) if place == step.at and _is_last(made, now, free_at, bases) else None
            )
            if over is not None:
                todo[now] = over
            start = _gap(taken, length) if over is None else slots[made.maps[0]].offset
            taken.append((start, start + length, free_at[place]))
            size = max(size, start + length)
            slots[place] = Slot(start, tuple(value.shape), value.stride(), value.dtype)
    return todo, slots, size


def _is_last(made: Native, now: int, free_at: Sequence[int], bases: Mapping[int, frozenset[int]]) -> bool:
    """Whether nothing but this step, and it once, needs its first map."""
    first, *others = made.maps
    return free_at[first] == now and not any(first in bases.get(place, {place}) for place in others)


def _over_first(made: Native, values: Sequence[Any], slots: Mapping[int, Slot]) -> Native | None:
    """A gated sum whose result lies where its first map did; None where the kernel cannot: it makes some pixels twice.

    What is not read from memory need not be there: an SPLConv U-Net takes 2 % less.
    """
    slot, result = slots.get(made.maps[0]), values[made.at]
    if not made.averages or slot is None or slot[1:] != (tuple(result.shape), result.stride(), result.dtype):
        return None
    step = made.bound.in_place([values[place] for place in made.maps])
    return made._replace(step=step) if step is not None and step.program.native else None


def _native(step: Step, values: Sequence[Any]) -> Native | None:
    """The step as a kernel that takes nothing but pointers, where it is one."""
    run = step.run
    if run in (to_channels_last, to_contiguous):
        return _copied(step, values[step.reads[0]], values[step.at])
    if not isinstance(run, KernelRun):
        return None
    inputs = [values[place] for place in step.reads]
    maps, places = run.maps(inputs), run.maps(step.reads)
    averages = tuple(run.averages(step.reads))
    if any(not values[place].flatten(1).is_contiguous() for place in averages):
        return None
    made = run.step(maps)
    if made is None or not made.program.native:
        return None
    return Native(made, tuple(p for p in places if p is not None), averages, run.bound, step.at, step.second)


def _copied(step: Step, x: Tensor, made: Tensor) -> Native | None:
    """A change of layout as a copy; None where there is none, or PyTorch makes it."""
    program = copy_of(x, planes=step.run is to_contiguous) if x.dim() == 4 and x.stride() != made.stride() else None
    if program is None:
        return None
    copied = Copied(program, tuple(made.shape), made.stride(), made.dtype)
    return Native(copied, step.reads, (), None, step.at, -1)


def _ends(steps: Sequence[Step], count: int, outputs: Sequence[int]) -> list[int]:
    """The last step that needs each value, itself or through a view of it; beyond the last one what is handed out."""
    last = [-1] * count
    for now, step in enumerate(steps):
        for place in (step.at, step.second):
            if place >= 0:
                last[place] = now
        for place in step.reads:
            last[place] = now
    for place in outputs:
        last[place] = len(steps)
    for step in reversed(steps):
        if step.views:
            for place in step.reads:
                last[place] = max(last[place], last[step.at])
    return last


def _bases(steps: Sequence[Step]) -> dict[int, frozenset[int]]:
    """Of each view the places that it may lie in."""
    found: dict[int, frozenset[int]] = {}
    for step in steps:
        if step.views:
            found[step.at] = frozenset().union(*[found.get(place, {place}) for place in step.reads])
    return found


def _gap(taken: Sequence[tuple[int, int, int]], length: int) -> int:
    """The lowest start of `length` bytes that no taken piece overlaps."""
    start = 0
    for low, high, _ in sorted(taken):
        if low - start >= length:
            break
        start = max(start, high)
    return start
