"""Test whether two answers agree up to rounding: one rule for folds, files, engines and their blocks.

Equal entries carry no information and are left out (NaN equals NaN, an infinity equals itself). The others are split
into sets of similar scale, so that large values do not hide errors of small ones:

1. By magnitude, at gaps of a factor `GAP` or more. A sentinel of -1e9 is separated from the scores.
2. Then along every axis, slice by slice. Neighbouring slices are merged until a set has enough entries.

The size of a set is its largest expected value. Its error may be `tolerance` times that size. A larger error may be
excused as rounding, by at most `AMPLIFIED` times the noise of the expected values. Noise is their distance from the
same computation in float64, or the change in float64 after rounding the inputs. The excuse never exceeds the ceiling of
the set's unit. The unit is the largest set with no more noise among all outputs. A nearly dead channel is as precise
as its neighbours. Shares from 0 to 1 have one common unit. The smallest other set provides the scale for a set of
zeros or of noise alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GAP = 8.0
# A set has enough entries with a quarter of all, within these bounds.
FEW, MANY = 4, 16
AMPLIFIED = 10.0
# Largest excused error relative to the unit; the second one is for float64 answers without a known noise.
CEILING, EXACT_CEILING = 5e-2, 1e-3
# Noise levels within this factor count as equal.
SIMILAR_NOISE = 3.0
# Assumed noise if no float64 answer exists: this many roundings of the median set's size.
ROUNDINGS = 16.0
# Share of integers (class indices) that may differ because two scores tie. With a tolerance up to ALGEBRA, none may.
# Where at least `FEW` entries of one value differ, no more than half of that value's entries may: ties remove no class.
INTEGER_SHARE, ALGEBRA = 1e-3, 1e-6

# The expected answer in float64: for 0 on the same inputs, for 1 to MOVED on rounded inputs. None: unknown.
Exact = Callable[[int], Sequence[Tensor] | None]
MOVED = 2


@dataclass(frozen=True)
class Error:
    """The error of an answer against the expected one.

    Attributes:
        absolute: the largest difference.
        relative: the largest difference in the worst set of entries, relative to the set's size.
        allowed: the largest allowed `relative` in that set.
        problem: why the two cannot be compared, or "".
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
        """The error divided by the allowed error. It ranks several errors."""
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
    """Return the error of a flat answer by the rule above. Shapes and dtypes must match.

    Args:
        exact: returns float64 answers. It is called only if the error exceeds `tolerance`.
        coarser: the rounding error of the other answer's number type, relative to the expected answer's.
        chaos: a set that rounding alone changes by more than this share of its size is ignored.
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
    if lost or share > (INTEGER_SHARE if tolerance > ALGEBRA else 0.0):
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
    """One tensor of an answer. `sets` holds pairs: a mask of entries, and along every axis the set of each slice."""

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
        """Return the largest of `values` (one for each entry) in each set."""
        found = []
        for which, cuts in self.sets:
            kept = torch.where(which, values, 0)
            for axis, places in cuts:
                slices = _along(kept, axis, torch.amax).double()
                found.append(slices.new_zeros(int(places[-1]) + 1).scatter_reduce(0, places, slices, "amax"))
        return torch.cat(found)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the largest difference of two tensors in each set. Entries that are not finite count as equal."""
        one, other = (t.reshape(self.want.shape) for t in (one, other))
        apart = (one - other).abs()
        apart = apart.nan_to_num(0.0, torch.finfo(apart.dtype).max)  # an overflow is a large distance
        return self.largest(torch.where(one.isfinite() & other.isfinite(), apart, 0))


def _wide(value: Tensor) -> Tensor:
    """Convert half precision and float8 to float32, in which all needed operations exist."""
    return value.float() if value.is_floating_point() and value.dtype.itemsize <= 2 else value


def _along(values: Tensor, axis: int, reduce: Callable[..., Tensor]) -> Tensor:
    for other in reversed(range(values.dim())):  # start with the last axis: contiguous reads
        values = values if other == axis else reduce(values, other, keepdim=True)
    return values.flatten()


def _of_one_magnitude(size: Tensor, apart: Tensor) -> list[Tensor]:
    """Split the entries `apart` at gaps between their magnitudes, if enough entries lie below the gap.

    Zeros join the largest set. `size`: the magnitudes of these entries, zero elsewhere.
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
    """Return the set of each slice. Neighbours are merged until a set has enough entries."""
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
    """The effect of rounding in each set.

    Attributes:
        own: noise of the expected answer; 0 if unknown.
        scale: the set's size, or the size of the smallest other set.
        excused: the error that rounding excuses.
        worse: the error against float64; 0 if it is at most the expected answer's own, infinite if unknown.
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
            size = torch.where(size <= 4 * self.own, 0.0, size)  # noise only
            noise = torch.maximum(self.own, eps / 4 * size)
            unit = _units(parts, size, noise)
        if bool((size > 0).any()):
            least = int(torch.where(size > 0, size, math.inf).argmin())
            self.scale, noise, unit = (torch.where(size > 0, each, each[least]) for each in (size, noise, unit))
        else:  # only the equal entries show the scale of this answer
            equal = torch.cat([part.equal.double() for part in parts])
            equal = equal[equal > 0]
            self.scale = unit = torch.full_like(size, float(equal.median()) if equal.numel() else 0.0)
        self.excused = torch.minimum(AMPLIFIED * coarser * noise, torch.maximum(ceiling * unit, 2 * self.own))


def _distances(parts: Sequence[_Part], exact: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the distances of the expected and of the given answer from float64.

    The first one includes the change that rounding the inputs causes in float64.
    """
    truth, *moved = exact
    own = [torch.cat([part.distance(part.want, truth[part.index]) for part in parts])]
    for answer in moved:
        own.append(torch.cat([part.distance(truth[part.index], answer[part.index]) for part in parts]))
    return torch.stack(own).amax(0), torch.cat([part.distance(part.have, truth[part.index]) for part in parts])


def _beside_noise(error: Tensor, tolerance: float, noise: _Noise, chaos: float) -> Error:
    """Return the error of the worst set."""
    error = torch.where(noise.own > chaos * noise.scale, 0.0, error)
    largest, allowed = float(error.max()), torch.maximum(tolerance * noise.scale, noise.excused)
    allowed = torch.where(noise.worse <= tolerance * noise.scale, torch.maximum(allowed, error), allowed)
    worst = int((error / allowed).nan_to_num(0.0, math.inf).argmax())
    if not float(noise.scale[worst]):
        return Error(largest, math.inf, tolerance)
    relative, room = (float(each[worst] / noise.scale[worst]) for each in (error, allowed))
    return Error(largest, relative, room)


def _units(parts: Sequence[_Part], size: Tensor, noise: Tensor) -> Tensor:
    """Return each set's unit: the size of the largest set with similar noise or less. All shares have one unit."""
    order = noise.argsort()
    largest = size[order].cummax(0).values
    unit = largest[torch.searchsorted(noise[order], SIMILAR_NOISE * noise, right=True) - 1]
    share = torch.cat([part.largest(~_within(part.want, part.have)) for part in parts]) == 0
    return torch.where(share, torch.maximum(unit, size[share].max() if bool(share.any()) else unit), unit)


def _within(*values: Tensor) -> Tensor:
    """Mark the entries that are shares (numbers from 0 to 1) in all tensors."""
    found = [(value >= 0) & (value <= 1) for value in values if not value.is_complex()]
    return torch.stack(found).all(0) if found else torch.zeros(values[0].shape, dtype=torch.bool)
