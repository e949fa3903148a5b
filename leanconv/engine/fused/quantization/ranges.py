"""Ranges: which interval of a value's numbers its 256 levels cover, chosen from histograms of the calibration images.

The rule. Each image has one vote: the root of its error relative to its own size (root mean square), at most 1. The
interval with the least average vote is taken. The error is that of rounding inside the interval, and of clipping
outside it. The root makes an image that is lost count as seventeen whose error grows from 0.2 % to 1 %.

Why not the least and the largest number: one outlier would leave few levels for all other numbers. Why not a
percentile: the few large numbers of a heat map are the ones that count, and no percentile knows that. Why not the plain
mean square: an image that is a thousand times brighter would outweigh all others. Here it has one vote among many.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.ops.quantized import Quantization

LEVELS = 255  # steps between the least and the largest of the 256 numbers
BINS = 1024  # of an image's histogram, over its own range
NUMBERS = 1 << 16  # of an image that its histogram counts
IMAGES = 64  # whose votes are kept; later ones are not looked at
SHARES = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of an image's range, as candidates
BOUNDS = 8  # images whose ranges give candidates: the quantiles of all


class Observed:
    """Histograms of one value, one for each image that was seen."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Tensor]] = []  # the two ends of the range; the counts, the last one of zeros

    def see(self, x: Tensor) -> None:
        """Add the images of a batch, `N C H W`. Of a large image a part is read, and its least and largest number."""
        for image in x.detach().float():
            if len(self._seen) >= IMAGES:
                return
            numbers = image.movedim(0, -1).flatten()  # of channels_last: no copy
            ends = torch.stack(numbers.aminmax())
            if not bool(ends.isfinite().all()):
                raise ValueError("the calibration data give NaN or infinite numbers inside the network")
            numbers = _part(numbers, len(image))
            low, high = (float(end) for end in ends)
            width = (high - low) / BINS or 1.0
            used = numbers[numbers != 0]  # a zero is a level of its own, and has no error
            counts = torch.bincount(((used - low) / width).int().clamp_(0, BINS - 1), minlength=BINS)
            counts[0] += low != 0
            counts[-1] += high != 0
            self._seen.append((ends.double(), counts.double()))

    def __len__(self) -> int:
        return len(self._seen)

    def quantization(self) -> Quantization:
        """The levels of the best interval."""
        return of_range(*self.interval())

    def interval(self) -> tuple[float, float]:
        """The interval with the least average vote. It holds 0. (0, 0) for a value that is 0 or was never seen."""
        held = [(ends, counts) for ends, counts in self._seen if float(ends.abs().max()) > 0]
        if not held:
            return 0.0, 0.0
        votes = _Votes(torch.stack([ends for ends, _ in held]), torch.stack([counts for _, counts in held]))
        low, high = votes.ends[:, 0].clamp(max=0), votes.ends[:, 1].clamp(min=0)
        order = torch.linspace(0, len(held) - 1, min(BOUNDS, len(held))).round().long()
        lows, highs = low.sort(descending=True).values[order], high.sort().values[order]
        pairs = torch.stack([lows, highs], 1)
        best = votes.best(torch.cat([share * pairs for share in SHARES]))
        for _ in range(2):  # each end by itself, the other one kept
            for column, ends in ((1, highs), (0, lows)):
                tried = torch.cat([best[column : column + 1], *[share * ends for share in SHARES]])
                candidates = best.repeat(len(tried), 1)
                candidates[:, column] = tried
                best = votes.best(candidates)
        return float(best[0]), float(best[1])


def _part(numbers: Tensor, channels: int) -> Tensor:
    """At most `NUMBERS` of the numbers, pixel by pixel, in even steps that meet all channels alike."""
    step = -(-len(numbers) // NUMBERS)
    while math.gcd(step, channels) > 1:
        step += 1
    return numbers[::step]


def of_range(low: float, high: float) -> Quantization:
    """The quantization whose 256 numbers cover the interval. It holds 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / LEVELS
    if not 1e-30 < step < math.inf:
        return Quantization(1.0)
    return Quantization(step, min(LEVELS, max(0, round(-low / step))))


class _Votes:
    """The votes of all images. Sums over the bins from each end make a candidate cost two look-ups an image."""

    def __init__(self, ends: Tensor, counts: Tensor) -> None:
        """`ends`: `images 2`; `counts`: `images BINS`, without zeros."""
        self.ends = ends
        self._low, self._width = ends[:, :1], (ends[:, 1:] - ends[:, :1]) / BINS
        values = self._low + (torch.arange(BINS) + 0.5) * self._width
        moments = torch.stack([counts, counts * values, counts * values**2])  # 3 images BINS
        below = torch.nn.functional.pad(moments.cumsum(2), (1, 0))
        self._below, self._all = below, below[..., -1:]
        self._energy = self._all[2].clamp(min=1e-300)  # images 1

    def best(self, candidates: Tensor) -> Tensor:
        """The interval of least average vote among `K 2`; the first among equals."""
        low, high = candidates[:, 0][None], candidates[:, 1][None]  # 1 K
        under, over = self._until(low), self._all - self._until(high)  # 3 images K
        clipped = _about(under, low) + _about(over, high)
        inside = self._all[0] - under[0] - over[0]
        error = clipped + inside * ((high - low) / LEVELS) ** 2 / 12
        votes = (error / self._energy).clamp(0, 1).pow(0.25).mean(0)
        return candidates[int(votes.argmin())]

    def _until(self, bound: Tensor) -> Tensor:
        """The moments of all numbers below `bound`, `1 K`: bins count as a whole, by their middle."""
        bins = ((bound - self._low) / self._width.clamp(min=1e-300)).round().clamp(0, BINS).long()  # images K
        return self._below.gather(2, bins[None].expand(3, -1, -1))


def _about(moments: Tensor, centre: Tensor) -> Tensor:
    """The sum of squared distances from `centre`, from count, sum and sum of squares."""
    count, first, second = moments
    return (second - 2 * centre * first + centre**2 * count).clamp(min=0)


def pooled(observed: Sequence[Observed]) -> Observed:
    """Several values that must share their levels, as one."""
    made = Observed()
    for each in observed:
        made._seen += each._seen
    return made
