"""What the starts of all operators share: the checks of a dense layer, the bias, inner norms that change nothing.

An operator's `project_(conv, gram)` takes the member of its family that is nearest to `conv`:
`ops/least_squares.py` has the solvers.
"""

import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.ops import least_squares
from leanconv.ops.fold import bn_scale_shift


def checked_start(project: Any) -> Any:
    """The `project_` of an operator, without gradients, on a layer and a gram that it can use.

    The gram comes as float64 where the layer's weights are; a method without such an argument is called without.
    A layer on the meta device has learnt nothing: False.
    Raises: BadInput for weights that are not finite or of another shape, and for a gram that does not fit the layer.
    """

    takes_gram = "gram" in inspect.signature(project).parameters

    @functools.wraps(project)
    @torch.no_grad()
    def checked(self: Any, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        wanted = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if tuple(conv.weight.shape) != wanted:
            name = getattr(self, "name", type(self).__name__)
            raise BadInput(f"{name} stands for a kernel {wanted} and got one of {tuple(conv.weight.shape)}")
        if conv.weight.is_meta:
            return False
        for what, value in (("weight", conv.weight), ("bias", conv.bias), ("gram", gram)):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise BadInput(
                    f"the convolution's {what} has NaN or infinite numbers; load other weights, or start fresh"
                )
        known = None if gram is None else _fitting(conv, gram)
        return bool(project(self, conv, known) if takes_gram else project(self, conv))

    return checked


def _fitting(conv: nn.Conv2d, gram: Tensor) -> Tensor:
    side = conv.weight[0].numel()
    if tuple(gram.shape) != (conv.groups, side, side):
        raise BadInput(f"a gram of {tuple(gram.shape)} does not fit; this layer's is {(conv.groups, side, side)}")
    gram = gram.detach().to(conv.weight.device, torch.double)
    return (gram + gram.mT) / 2


def exact_weight(conv: nn.Conv2d) -> Tensor:
    """A copy of the layer's kernel `O C/G R S` in float64, contiguous."""
    return conv.weight.detach().to(torch.double, copy=True, memory_format=torch.contiguous_format)


@torch.no_grad()
def take_bias_(bias: Tensor | None, conv: nn.Conv2d) -> None:
    """Give an operator's output bias the layer's, or zeros."""
    if bias is not None:
        bias.zero_() if conv.bias is None else bias.copy_(conv.bias)


def nearest_taps(conv: nn.Conv2d, gram: Tensor | None, live: Tensor) -> Tensor:
    """The best kernel with taps only where `live`, bool `O C/G R S`: optimal for each filter. In float64."""
    weight = exact_weight(conv)
    start = weight * live
    if gram is None:
        return start
    rows = []
    for target, first, taps, normal in zip(*(t.chunk(conv.groups) for t in (weight, start, live)), gram, strict=True):
        cross = target.flatten(1) @ normal
        rows.append(least_squares.nearest_rows(cross, normal, first.flatten(1), taps.flatten(1)))
    return torch.cat(rows).view_as(weight)


def nearest_pair(
    target: Tensor, gram: Tensor | None, groups: int, rank: int, sees: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A group convolution and a 1×1 near to a dense kernel: the nearest where white, else by alternation from there.

    Args:
        target: `O C R S`, float64.
        gram: `1 D D`; None: white.
        groups, rank: of the group convolution, and how many filters each group has.
        sees: bool `O G·rank`, the live entries of the 1×1; rank 1 only. None: all.
    Returns: the 1×1 `O G·rank` and the filters `G·rank C/G R S`, of equal norms. A filter without use is zero in both.
    """
    blocks = target.flatten(2).unflatten(1, (groups, -1)).flatten(2).transpose(0, 1)  # G O (C/G R·S)
    seen = blocks if sees is None else blocks * sees.T[..., None]
    v, u = least_squares.low_rank(seen, rank)
    if gram is not None:
        v, u = _alternated(target.flatten(1), gram[0], v, u, sees)
    v, u = least_squares.balanced(v, u)
    return v.transpose(0, 1).flatten(1), u.flatten(0, 1).unflatten(1, (-1, *target.shape[2:]))


def _alternated(target: Tensor, normal: Tensor, v: Tensor, u: Tensor, sees: Tensor | None) -> tuple[Tensor, Tensor]:
    """The better end of the alternation's starts: the white optimum, and each block's optimum in its own metric."""
    groups, rank, taps = u.shape
    cross = target @ normal
    energy = (cross * target).sum()
    starts = [(v, u)]
    if sees is None:
        own = normal.unflatten(0, (groups, taps)).unflatten(2, (groups, taps)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        starts.append(least_squares.low_rank(target.unflatten(1, (groups, taps)).transpose(0, 1), rank, own))
    flat = [(v.transpose(0, 1).flatten(1), u) for v, u in starts]
    if len(flat) > 1:
        first = [least_squares.alternate(cross, normal, energy, v, u, sees, sweeps=0) for v, u in flat]
        flat = [min(first, key=lambda each: each[2])[:2]]
    v, u, _ = least_squares.alternate(cross, normal, energy, *flat[0], sees)
    return v.unflatten(1, (groups, rank)).transpose(0, 1), u


@torch.no_grad()
def take_filters_(stored: Tensor, filters: Tensor) -> None:
    """Copy `M C/G R S` into a convolution's weight; a filter that is zero stays fresh, so that it can learn.

    The 1×1 that follows has zeros for it: of two zero factors neither would ever get a gradient.
    """
    used = filters.flatten(1).any(1).view(-1, 1, 1, 1)
    stored.copy_(torch.where(used, filters, stored.double()))


def nearest_slots(
    target: Tensor, gram: Tensor | None, channels: Tensor, basis: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Depthwise filters of any taps, then a 1×1, near to a dense kernel: W[:, c] = Σ_{m reads c} v[:, m] u[m] B[m].

    Optimal where white and no channel has two filters; else by alternation from there.

    Args:
        target: `O C R S`, float64.
        gram: `1 D D`; None: white.
        channels: the input channel of each of M filters.
        basis: `M K R·S`, what each number of a filter weighs of the dense kernel's taps; rows orthogonal, or zero.
    Returns: the 1×1 `O M`, the filters `M K`, and the mean squares `M` of the filters' outputs.
    """
    (o, c), (m, k, taps) = target.shape[:2], basis.shape
    parts = target.flatten(2)[:, channels].transpose(0, 1)  # M O R·S
    energies = basis.square().sum(2)
    white = torch.where(energies[:, None] > 0, parts @ basis.mT / energies[:, None].clamp_min(1e-30), 0.0)  # M O K
    alike = channels[:, None] == channels
    normal = torch.einsum("mkt,nlt,mn->mknl", basis, basis, alike.to(basis)).reshape(m * k, m * k)
    cross = (parts @ basis.mT).transpose(0, 1).reshape(o, m * k)
    own = basis @ basis.mT
    v, u = least_squares.low_rank(white, 1, own)
    pair = v[..., 0].T, u
    if len(channels.unique()) < m:
        pair = least_squares.alternate(cross, normal, target.square().sum(), *pair)[:2]
    if gram is not None:
        pulled = target.flatten(1) @ gram[0]
        energy = (pulled * target.flatten(1)).sum()
        cross = (pulled.view(o, c, taps)[:, channels].transpose(0, 1) @ basis.mT).transpose(0, 1).reshape(o, m * k)
        half = (basis @ gram[0].view(c, taps, -1)[channels]).view(m * k, c, taps)  # M K D
        normal = (half[:, channels].transpose(0, 1) @ basis.mT).transpose(0, 1).reshape(m * k, m * k)
        own = normal.view(m, k, m, k).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        v, u = least_squares.low_rank(white, 1, own)
        starts = [pair, (v[..., 0].T, u)]
        first = [least_squares.alternate(cross, normal, energy, *each, sweeps=0) for each in starts]
        pair = min(first, key=lambda each: each[2])[:2]
        pair = least_squares.alternate(cross, normal, energy, *pair)[:2]
    v, u = least_squares.balanced(pair[0].T[..., None], pair[1])
    return v[..., 0].T, u[:, 0], torch.einsum("mk,mkl,ml->m", u[:, 0], own, u[:, 0])


@torch.no_grad()
def restate_norm_(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Give a BatchNorm other running statistics, and the weight and bias with which its answers in eval mode stay."""
    scale, shift = bn_scale_shift(cast(nn.BatchNorm2d, norm))
    _set_norm_(norm, scale, shift, mean, variance)


@torch.no_grad()
def linear_norm_(norm: nn.Module, variance: Tensor, scale: Any = 1.0, shift: Any = 0.0) -> None:
    """Start a BatchNorm as `y · scale + shift`: in train mode too, where y has mean 0 and this variance."""
    if isinstance(norm, nn.BatchNorm2d):
        one = torch.ones_like(variance)
        _set_norm_(norm, scale * one, shift * one, 0 * one, torch.where(variance > 0, variance, one))


def _set_norm_(norm: Any, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> None:
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)  # in half types rounded, so that the rest goes by what is stored
    norm.weight.copy_(scale * (norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(shift + norm.running_mean.double() * scale)


def shared_axis(offsets: list[int], size: int, dilation: int) -> list[int | None]:
    """For taps that read at these offsets from the output's pixel, the tap of the dense kernel there, or None.

    Args:
        offsets: in pixels.
        size, dilation: of the dense kernel along this axis; padded so that its middle is at offset 0.
    """
    found: list[int | None] = []
    for offset in offsets:
        place, rest = divmod(offset, dilation)
        place += (size - 1) // 2
        found.append(place if rest == 0 and 0 <= place < size else None)
    return found


def tap_basis(rows: list[int | None], columns: list[int | None], kernel: tuple[int, int]) -> Tensor:
    """`K R·S` with a one where a filter's tap (row by row) lies on a tap of the dense kernel; float64, on the CPU."""
    basis = torch.zeros(len(rows), len(columns), *kernel, dtype=torch.double, device="cpu")
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            if y is not None and x is not None:
                basis[i, j, y, x] = 1
    return basis.flatten(2).flatten(0, 1)


def pooled_taps(kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """What a 1×1 behind a stride×stride average weighs of the dense kernel's taps: `R·S`; stride 1: the middle."""
    rows, columns = (shared_axis(list(range(s)), k, d) for k, s, d in zip(kernel, stride, dilation, strict=True))
    return tap_basis(rows, columns, kernel).sum(0) / (stride[0] * stride[1])


def linear_range(act: str | None, shifted: bool) -> tuple[float, float, float]:
    """Where an activation is most nearly linear: `act(y · scale + shift)` is near `y · scale · slope + shift`.

    Args:
        act: None, "relu", "relu6" or "hardswish"; y has mean 0 and deviation 1.
        shifted: whether what follows can take the shift back. Without it ReLUs start at their bend.
    Returns: scale, shift and slope.
    """
    if act is None:
        return 1.0, 0.0, 1.0
    if shifted:
        return 1.0, {"relu": 2.0, "relu6": 3.0, "hardswish": 5.0}[act], 1.0
    return (0.1, 0.0, 0.5) if act == "hardswish" else (1.0, 0.0, 1.0)


def mean_squares(kernel: Tensor, gram: Tensor | None) -> Tensor:
    """The mean square of each filter's output, `O`, for kernels `O D` of a layer without groups."""
    return ((kernel if gram is None else kernel @ gram[0]) * kernel).sum(1)
