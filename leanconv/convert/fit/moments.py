"""The second moments of a layer's inputs and outputs, summed in float64 over batches; memory does not grow with them.

With x a patch of the input (D = C/G·R·S numbers per group, channel-major, as in `conv.weight.flatten(1)`) and y the
target of the same pixel, the sums of x, y, x·xᵀ and y·xᵀ decide the best linear layer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK = 4096  # rows of one product in their own type; the sums of the products are float64


def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    sides = conv._reversed_padding_repeated_twice
    if not any(sides):
        return x
    return F.pad(x, sides, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)


def patches(conv: nn.Conv2d, x: Tensor, pixels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The patches under the kernel at the given pixels: `N C H W` and indices (n, p, q) -> `pixels G D`.

    Any padding, padding mode, stride, dilation and groups.
    """
    x = _padded(conv, x)
    (sh, sw), (dh, dw), (r, s) = conv.stride, conv.dilation, conv.kernel_size
    n, c, h, w = x.shape
    size = n, (h - dh * (r - 1) - 1) // sh + 1, (w - dw * (s - 1) - 1) // sw + 1, c, r, s
    a, b, e, f = x.stride()
    windows = x.as_strided(size, (a, e * sh, f * sw, b, e * dh, f * dw))  # N P Q C R S
    return windows[pixels].reshape(len(pixels[0]), conv.groups, -1)


def sampled(y: Tensor, most: int, dice: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (n, p, q) into an output `N O P Q`: all pixels, or `most` of each image drawn at random."""
    n, _, p, q = y.shape
    flat = torch.arange(n * p * q)
    if p * q > most:
        drawn = torch.stack([torch.randperm(p * q, generator=dice)[:most] for _ in range(n)])
        flat = (drawn + torch.arange(n)[:, None] * p * q).flatten()
    flat = flat.to(y.device)
    return flat // (p * q), flat // q % p, flat % q


@dataclass
class Sums:
    """Float64 sums over `count` pixels, relative to the means of the first batch (`x0`, `y0`), against cancellation."""

    x0: Tensor  # G D
    y0: Tensor  # O
    x: Tensor  # G D
    y: Tensor  # O
    gram: Tensor | None  # G D D; None where it is not wanted
    cross: Tensor | None  # G O/G D
    count: int = 0

    @classmethod
    def like(cls, x: Tensor, y: Tensor, *, gram: bool) -> "Sums":
        """Empty sums for rows `pixels G D` and `pixels O`."""
        (_, g, d), o = x.shape, y.shape[1]

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=x.device)

        # Rounded to the rows' type: what is taken off there is then exactly what is added here.
        means = x.mean(0).double(), y.mean(0).double()
        return cls(
            *means, zeros(g, d), zeros(o), zeros(g, d, d) if gram else None, zeros(g, o // g, d) if gram else None
        )

    def add_(self, x: Tensor, y: Tensor) -> None:
        """Add rows: patches `pixels G D` and targets `pixels O`."""
        for rows, targets in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            rows, targets = rows - self.x0.to(rows), targets - self.y0.to(targets)
            self.x += rows.double().sum(0)
            self.y += targets.double().sum(0)
            self.count += len(rows)
            if self.gram is None or self.cross is None:
                continue
            rows = rows.transpose(0, 1)  # pixels G D -> G pixels D
            targets = targets.unflatten(1, (len(rows), -1)).transpose(0, 1)  # pixels O -> G pixels O/G
            self.gram += rows.mT @ rows
            self.cross += targets.mT @ rows

    def is_finite(self) -> bool:
        """Whether no sum has overflowed: products are in the rows' own type."""
        held = (self.x, self.y, self.gram, self.cross)
        return all(bool(each.isfinite().all()) for each in held if each is not None)

    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x `G D` and y `O`."""
        return self.x0 + self.x / self.count, self.y0 + self.y / self.count

    def second(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of x·xᵀ `G D D` and of y·xᵀ `G O/G D`; of the deviations from the means where `centred`."""
        if self.gram is None or self.cross is None:
            raise ValueError("these sums hold no second moments")
        groups = len(self.x)
        dx, dy = self.x / self.count, (self.y / self.count).view(groups, -1)
        gram = self.gram / self.count - dx[:, :, None] * dx[:, None]
        cross = self.cross / self.count - dy[:, :, None] * dx[:, None]
        if not centred:
            x, y = self.means()
            gram = gram + x[:, :, None] * x[:, None]
            cross = cross + y.view(groups, -1)[:, :, None] * x[:, None]
        return gram, cross


@dataclass(frozen=True)
class Solution:
    """The best dense layer for these inputs: weight `O C/G R S` and bias `O` in float64; `gram` what decided it."""

    weight: Tensor
    bias: Tensor | None
    gram: Tensor


def solve(sums: Sums, conv: nn.Conv2d, *, centred: bool, ridge: float) -> Solution:
    """min over W of E‖y - W·x - b‖² + λ‖W - W0‖², W0 the old weights; b only where `centred`.

    λ = `ridge` · the mean square of an input: what few pixels leave open stays as it was.
    """
    gram, cross = sums.second(centred=centred)
    groups, _, d = gram.shape
    old = conv.weight.detach().double().reshape(groups, -1, d)
    size = float(gram.diagonal(dim1=1, dim2=2).mean())
    strength = ridge * size if size > 0 else 1.0
    unit = torch.eye(d, dtype=gram.dtype, device=gram.device)
    lower, failed = torch.linalg.cholesky_ex(gram + strength * unit)
    while bool(failed.any()):  # rounded below zero: one channel is far louder than the others
        strength *= 10
        lower, failed = torch.linalg.cholesky_ex(gram + strength * unit)
    weight = torch.cholesky_solve((cross + strength * old).mT, lower).mT
    bias = None
    if centred:
        x, y = sums.means()
        bias = y - (weight @ x[..., None]).flatten()
    return Solution(weight.reshape(conv.weight.shape), bias, gram + strength * unit)
