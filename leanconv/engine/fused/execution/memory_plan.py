"""The memory plan: all values of a call in one buffer; two share a place if they are never needed together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.lowering.kernels import KernelRun
from leanconv.kernels import backend, to_channels_last, to_contiguous
from leanconv.kernels.interface import Bound, Prepared

ALIGN = 64  # bytes; a line of the cache, a vector of AVX-512


class Step(NamedTuple):
    """One function of a program, with the places of its inputs and results among the program's values.

    Args:
        second: the place of a second result; -1 for none.
        frees: places that nothing reads after it.
        views: whether its result may be a view of an input.
    """

    run: Callable[..., Any]
    reads: tuple[int, ...]
    at: int
    second: int
    frees: tuple[int, ...]
    views: bool

    def into(self, values: list[Any]) -> None:
        """Run it, and put its results among the values."""
        made = self.run(*[values[i] for i in self.reads])
        if self.second < 0:
            values[self.at] = made
        else:
            values[self.at], values[self.second] = made


class Slot(NamedTuple):
    """A value in the plan's buffer, `offset` bytes behind its start."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class KernelStep(NamedTuple):
    """A step as a launch: the places of its maps and averages, and where its results go.

    `bound` is None for a copy into the other layout.
    """

    prepared: Prepared
    maps: tuple[int, ...]
    averages: tuple[int, ...]
    bound: Bound | None
    at: int
    second: int


def plan_memory(
    steps: Sequence[Step], values: Sequence[Any], outputs: Sequence[int]
) -> tuple[list[KernelStep | Step], dict[int, Slot], int]:
    """What runs for each step; a slot for every kernel's result that is not returned; the buffer's size in bytes.

    First fit, in the order of the steps. `values`: shapes, strides and dtypes of all values, as one run saw them.
    """
    todo: list[KernelStep | Step] = [_as_launch(step, values) or step for step in steps]
    free_at, bases = _ends(steps, len(values), outputs), _bases(steps)
    slots: dict[int, Slot] = {}
    taken: list[tuple[int, int, int]] = []  # start, stop, last step that needs it
    size = 0
    for now, step in enumerate(steps):
        taken = [piece for piece in taken if piece[2] >= now]
        made = todo[now]
        if not isinstance(made, KernelStep):
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


def _is_last(made: KernelStep, now: int, free_at: Sequence[int], bases: Mapping[int, frozenset[int]]) -> bool:
    """Whether this step alone needs its first map, and once."""
    first, *others = made.maps
    return free_at[first] == now and not any(first in bases.get(place, {place}) for place in others)


def _over_first(made: KernelStep, values: Sequence[Any], slots: Mapping[int, Slot]) -> KernelStep | None:
    """A gated sum in place of its first map; None where the kernel cannot, because it computes some pixels twice.

    In place, the result needs no memory of its own: an SPLConv U-Net takes 2 % less time.
    """
    slot, result = slots.get(made.maps[0]), values[made.at]
    if not made.averages or slot is None or slot[1:] != (tuple(result.shape), result.stride(), result.dtype):
        return None
    prepared = made.bound.prepare_in_place(*[values[place] for place in made.maps]) if made.bound else None
    return made._replace(prepared=prepared) if prepared is not None else None


def _as_launch(step: Step, values: Sequence[Any]) -> KernelStep | None:
    """The step as a launch, where it is a kernel or a copy that can be launched."""
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
    prepared = run.prepare(maps)
    if prepared is None:
        return None
    return KernelStep(prepared, tuple(p for p in places if p is not None), averages, run.bound, step.at, step.second)


def _copied(step: Step, x: Tensor, result: Tensor) -> KernelStep | None:
    """A change of layout as a launch; None where nothing moves, or PyTorch copies."""
    if x.dim() != 4 or x.stride() == result.stride():
        return None
    prepared = backend().copy(x, planes=step.run is to_contiguous)
    return None if prepared is None else KernelStep(prepared, step.reads, (), None, step.at, -1)


def _ends(steps: Sequence[Step], count: int, outputs: Sequence[int]) -> list[int]:
    """The last step that needs each value or a view of it; for outputs a number beyond the last step."""
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
    """The places that each view may lie in."""
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
