"""Whether two answers agree up to rounding: one rule, for folds, for files, for engines and for their blocks.

Entries that are equal say nothing (NaN equals NaN, an infinity itself): they are neither error nor scale. The others
are cut into sets of one scale, so that nothing large hides what is wrong beside it, joined to it or not:

1. by magnitude, where a gap of `GAP` times lies between them: a sentinel of -1e9 stands apart from the scores;
2. each of these along every axis, slice by slice; neighbours together until entries enough vouch for a size.

A set's size is its largest expected value; its error may be `tolerance` times that. More is excused as rounding: up to
`AMPLIFIED` times the noise of the expected values, which is their distance from the same computation in float64, or
what roundings of the inputs change there; and never more than the ceiling of the set's unit. The unit is the largest
set with no more noise, among all outputs: a channel that is nearly dead is known as well as its neighbours are. Shares
from 0 to 1 have one unit. A set of zeros, or of noise alone, is measured with the smallest of the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GAP = 8.0
# Entries that vouch for a size: a quarter of all, within these bounds.
FEW, MANY = 4, 16
AMPLIFIED = 10.0
# Of the unit, by the number type where float64 tells nothing of the noise.
CEILING, EXACT_CEILING = 5e-2, 1e-3
# Noise that is not more, to speak of.
LIKE = 3.0
# Noise where float64 tells nothing: so many roundings of the largest number.
ROUNDINGS = 16.0
# Whole numbers (class indices): the share of them that may differ, because two scores tie; none in exact algebra. Of
# the entries that hold one value no more than half may, where `FEW` do: ties take no class away.
WHOLE, ALGEBRA = 1e-3, 1e-6

# The expected answer computed in float64: at 0 on the same inputs, then on inputs moved by a rounding. None: unknown.
Exact = Callable[[int], Sequence[Tensor] | None]
MOVED = 2


@dataclass(frozen=True)
class Error:
    """How far an answer is from the expected one.

    Attributes:
        absolute: the largest difference.
        relative: the largest difference in the set of entries that is worst off, as a share of the set's size.
        allowed: what `relative` may be there.
        problem: why the two cannot be compared at all, or "".
    """

    absolute: float
    relative: float
    allowed: float = 0.0
    problem: str = ""

    @property
    def passes(self) -> bool:
        return self.ok(self.allowed)

    def ok(self, tolerance: float) -> bool:
        return not self.problem and self.relative <= tolerance

    @property
    def excess(self) -> float:
        """How many times more than allowed; of several errors the largest counts."""
        if self.problem or self.relative == 0:
            return math.inf if self.problem else 0.0
        return self.relative / self.allowed if self.allowed else math.inf

    def __str__(self) -> str:
        return self.problem or f"{self.relative:.1e}"


def incomparable(problem: str) -> Error:
    return Error(math.inf, math.inf, 0.0, problem)


def compare(
    expected: Sequence[Tensor],
    given: Sequence[Tensor],
    tolerance: float,
    exact: Exact | None = None,
    coarser: float = 1.0,
    chaos: float = math.inf,
) -> Error:
    """The error of a flat answer, by the rule above. Shapes and dtypes must be the same.

    Args:
        exact: asked only where `tolerance` is not kept.
        coarser: how many times coarser than the expected answer's the number type is that the other was computed in.
        chaos: a set that rounding alone changes by more than this share of its size says nothing.
    """
    if len(expected) != len(given):
        return incomparable(f"{len(given)} outputs, not {len(expected)}")
    parts, share, lost = [], 0.0, False
    for index, (want, have) in enumerate(zip(expected, given, strict=True)):
        want, have = want.detach().cpu(), have.detach().cpu()
        if problem := _obstacle(want, have):
            return incomparable(f"output {index}: {problem}")
        if want.is_floating_point() or want.is_complex():
            parts.append(_Part(index, want, have))
        elif want.numel():
            share = max(share, float((want != have).double().mean()))
            lost = lost or (share > 0 and _loses_a_value(want, have))
    if lost or share > (WHOLE if tolerance > ALGEBRA else 0.0):
        return Error(share, math.inf, tolerance)
    parts = [part for part in parts if part.sets]
    return _judged(parts, tolerance, exact, coarser, chaos) if parts else Error(share, 0.0, tolerance)


def _obstacle(want: Tensor, have: Tensor) -> str:
    if want.shape != have.shape:
        return f"shape {tuple(have.shape)}, not {tuple(want.shape)}"
    if want.dtype != have.dtype:
        return f"{have.dtype}, not {want.dtype}"
    if not want.dtype.is_floating_point and not want.dtype.is_complex:
        return ""
    want, have = _wide(want), _wide(have)
    if want.numel() and not all(t.abs().amax().isfinite() for t in (want, have)):
        odd = ~(want.isfinite() & have.isfinite())
        if bool(_apart(want[odd], have[odd]).any()):
            return "other numbers are NaN or infinite than the model's"
    return ""


def _loses_a_value(want: Tensor, have: Tensor) -> bool:
    """Whether most entries of a value have another one in the other answer: a rare class is gone, or has come."""
    apart, each = want != have, (want.long(), have.long())
    for whole in each:
        values, held = whole.unique(return_counts=True)
        moved, times = whole[apart].unique(return_counts=True)
        if bool(((times >= FEW) & (2 * times > held[torch.searchsorted(values, moved)])).any()):
            return True
    return False


def _apart(want: Tensor, have: Tensor) -> Tensor:
    return (want != have) & ~(want.isnan() & have.isnan())


class _Part:
    """One tensor of an answer. `sets`: which entries, and along every axis the set that each slice belongs to."""

    def __init__(self, index: int, want: Tensor, have: Tensor) -> None:
        self.index, self.dtype = index, want.dtype
        self.want, self.have = (_wide(t if t.dim() else t[None]) for t in (want, have))
        apart, self.size = _apart(self.want, self.have), self.want.abs()
        self.equal = self.size[~apart & self.want.isfinite()]
        axes = [axis for axis, length in enumerate(apart.shape) if length > 1] or [0]
        self.sets = (
            [
                (like, [(axis, _together(_along(like.float(), axis, torch.sum).tolist())) for axis in axes])
                for like in _of_one_magnitude(torch.where(apart, self.size, 0), apart)
            ]
            if bool(apart.any())
            else []
        )

    def largest(self, values: Tensor) -> Tensor:
        """The largest of `values`, one for each entry, in each set."""
        found = []
        for which, cuts in self.sets:
            kept = torch.where(which, values, 0)
            for axis, places in cuts:
                slices = _along(kept, axis, torch.amax).double()
                found.append(slices.new_zeros(int(places[-1]) + 1).scatter_reduce(0, places, slices, "amax"))
        return torch.cat(found)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """The largest difference of two tensors in each set; what is not finite is no distance."""
        one, other = (t.reshape(self.want.shape) for t in (one, other))
        apart = (one - other).abs()
        apart = apart.nan_to_num(0.0, torch.finfo(apart.dtype).max)  # far apart enough to overflow is far apart
        return self.largest(torch.where(one.isfinite() & other.isfinite(), apart, 0))


def _wide(value: Tensor) -> Tensor:
    """What can be computed with: half precision and float8 as float32."""
    return value.float() if value.is_floating_point() and value.dtype.itemsize <= 2 else value


def _along(values: Tensor, axis: int, reduce: Callable[..., Tensor]) -> Tensor:
    for other in reversed(range(values.dim())):  # from the last: what lies together is read together
        values = values if other == axis else reduce(values, other, keepdim=True)
    return values.flatten()


def _of_one_magnitude(size: Tensor, apart: Tensor) -> list[Tensor]:
    """The entries `apart`, split where their magnitudes leave a gap, with entries enough below it; zeros go with most.

    `size`: of these entries, zero elsewhere.
    """
    octave = size.view(torch.int32) >> 23 if size.dtype == torch.float32 else size.view(torch.int64) >> 52
    bounds, held, empty = [], [0], 0
    for step, count in enumerate(torch.bincount(octave.flatten())[1:].tolist(), 1):
        if count and empty >= math.log2(GAP) and held[-1] >= FEW:
            bounds.append(step)
            held.append(0)
        held[-1], empty = held[-1] + count, 0 if count else empty + 1
    if not bounds:
        return [apart]
    level = torch.bucketize(octave.contiguous(), torch.tensor(bounds), right=True)
    level = torch.where(size > 0, level, held.index(max(held)))
    return [apart & (level == each) for each in range(len(held))]


def _together(counts: Sequence[float]) -> Tensor:
    """The set of each slice: neighbours together until there are entries enough."""
    places, place, held, left = [], 0, 0.0, sum(counts)
    enough = min(max(left / 4, FEW), MANY)
    for count in counts:
        if held >= enough and left >= enough:
            place, held = place + 1, 0
        places.append(place)
        held, left = held + count, left - count
    return torch.tensor(places)


def _judged(parts: Sequence[_Part], tolerance: float, exact: Exact | None, coarser: float, chaos: float) -> Error:
    error = torch.cat([part.distance(part.want, part.have) for part in parts])
    size = torch.cat([part.largest(part.size) for part in parts])
    largest = float(error.max())
    if bool((error <= tolerance * size).all()):
        return Error(largest, float((error / size).max()), tolerance)
    truth = None if exact is None else exact(0)
    seen = _beside_noise(error, tolerance, _Noise(parts, size, [truth] if truth is not None else [], coarser), chaos)
    if seen.passes or exact is None or truth is None:
        return seen
    moved = [answer for answer in map(exact, range(1, MOVED + 1)) if answer is not None]
    return _beside_noise(error, tolerance, _Noise(parts, size, [truth, *moved], coarser), chaos)


class _Noise:
    """What rounding is worth in each set.

    Attributes:
        own: the expected answer's; 0 where it is not known.
        scale: the set's size, or what it is measured with.
        excused: the error that rounding excuses.
        worse: the error against float64, where that is more than the expected answer's own; infinite where unknown.
    """

    def __init__(self, parts: Sequence[_Part], size: Tensor, exact: Sequence[Sequence[Tensor]], coarser: float) -> None:
        eps = torch.cat([torch.full_like(part.largest(part.size), torch.finfo(part.dtype).eps) for part in parts])
        self.own, self.worse, ceiling = torch.zeros_like(size), torch.full_like(size, math.inf), CEILING
        if not exact:
            noise = ROUNDINGS * eps * size[size > 0].median() if bool((size > 0).any()) else eps
            unit = size = torch.where(size <= noise, 0.0, size)
            ceiling = EXACT_CEILING if all(part.dtype == torch.float64 for part in parts) else CEILING
        else:
            self.own, off = _distances(parts, exact)
            self.worse = torch.where(off <= self.own, 0.0, off)
            size = torch.where(size <= 4 * self.own, 0.0, size)  # nothing but noise
            noise = torch.maximum(self.own, eps / 4 * size)
            unit = _units(parts, size, noise)
        if bool((size > 0).any()):
            least = int(torch.where(size > 0, size, math.inf).argmin())
            self.scale, noise, unit = (torch.where(size > 0, each, each[least]) for each in (size, noise, unit))
        else:  # what is equal tells at least what is large here
            equal = torch.cat([part.equal.double() for part in parts])
            equal = equal[equal > 0]
            self.scale = unit = torch.full_like(size, float(equal.median()) if equal.numel() else 0.0)
        self.excused = torch.minimum(AMPLIFIED * coarser * noise, torch.maximum(ceiling * unit, 2 * self.own))


def _distances(parts: Sequence[_Part], exact: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Of the expected and of the given answer from float64; of the former also what roundings of the inputs change."""
    truth, *moved = exact
    own = [torch.cat([part.distance(part.want, truth[part.index]) for part in parts])]
    for answer in moved:
        own.append(torch.cat([part.distance(truth[part.index], answer[part.index]) for part in parts]))
    return torch.stack(own).amax(0), torch.cat([part.distance(part.have, truth[part.index]) for part in parts])


def _beside_noise(error: Tensor, tolerance: float, noise: _Noise, chaos: float) -> Error:
    """The error of the set that is worst off."""
    error = torch.where(noise.own > chaos * noise.scale, 0.0, error)
    largest, allowed = float(error.max()), torch.maximum(tolerance * noise.scale, noise.excused)
    allowed = torch.where(noise.worse <= tolerance * noise.scale, torch.maximum(allowed, error), allowed)
    worst = int((error / allowed).nan_to_num(0.0, math.inf).argmax())
    if not float(noise.scale[worst]):
        return Error(largest, math.inf, tolerance)
    relative, room = (float(each[worst] / noise.scale[worst]) for each in (error, allowed))
    return Error(largest, relative, room)


def _units(parts: Sequence[_Part], size: Tensor, noise: Tensor) -> Tensor:
    """Of each set the size of the largest with no more noise to speak of; of shares, of the largest shares."""
    order = noise.argsort()
    largest = size[order].cummax(0).values
    unit = largest[torch.searchsorted(noise[order], LIKE * noise, right=True) - 1]
    share = torch.cat([part.largest(~_within(part.want, part.have)) for part in parts]) == 0
    return torch.where(share, torch.maximum(unit, size[share].max() if bool(share.any()) else unit), unit)


def _within(*values: Tensor) -> Tensor:
    """Where all of them are shares: numbers from 0 to 1."""
    found = [(value >= 0) & (value <= 1) for value in values if not value.is_complex()]
    return torch.stack(found).all(0) if found else torch.zeros(values[0].shape, dtype=torch.bool)
