"""Kernel algebra, written once: convolutions that become fewer convolutions, exactly."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def bn_scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm with its running statistics as `y · scale + shift`, one number per channel, in float64.

    Raises: ValueError if the layer keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("this BatchNorm keeps no running statistics (track_running_stats=False): it cannot be folded")
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(var) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(var) if norm.bias is None else norm.bias.detach().double()
    scale = gamma / torch.sqrt(var + norm.eps)
    return scale, beta - mean * scale


def scaled_weight(weight: Tensor, scale: Tensor, groups: int = 1, *, transposed: bool = False) -> Tensor:
    """The weight of `y · scale`, in float64: `O C/G R S`, or `C O/G R S` of a `transposed` convolution; linear: `O C`.

    Args:
        scale: one number per output channel.
        groups: of a transposed convolution, whose second axis has the output channels of one group.
    """
    scale = scale.double()
    if transposed:
        wide = scale.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)  # G C/G O/G
        return weight.double() * wide.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))
    return weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))


def scaled_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The bias of `y · scale + shift`, in float64."""
    return shift.double() if bias is None else bias.double() * scale.double() + shift.double()


@torch.no_grad()
def scale_conv_(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Absorb `y · scale + shift` into a convolution or linear layer in place; adds a missing bias (lemma L1)."""
    weight = cast(Tensor, layer.weight)
    transposed = isinstance(layer, TRANSPOSED)
    weight.copy_(scaled_weight(weight, scale, cast(int, layer.groups) if transposed else 1, transposed=transposed))
    scale_bias_(layer, scale, shift, weight)


@torch.no_grad()
def scale_bias_(layer: nn.Module, scale: Tensor, shift: Tensor, weight: Tensor) -> None:
    """The bias's part of `y · scale + shift`; adds one like `weight` where there is none."""
    old = cast(Tensor | None, layer.bias)
    bias = scaled_bias(old, scale, shift).to(weight)
    if old is None:
        layer.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    else:
        old.copy_(bias)


def fold_bn_(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Absorb the BatchNorm that follows `conv`, in eval mode, in place (lemma L1)."""
    scale_conv_(conv, *bn_scale_shift(norm))


def pad_taps(weight: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Embed a smaller odd kernel in the middle of a larger one: `O C R S -> O C R' S'` (lemma L6)."""
    dr, ds = kernel[0] - weight.shape[-2], kernel[1] - weight.shape[-1]
    if min(dr, ds) < 0 or dr % 2 or ds % 2:
        raise ValueError(f"a {tuple(weight.shape[-2:])} kernel has no middle place in {kernel}")
    return F.pad(weight, (ds // 2, ds // 2, dr // 2, dr // 2))


def with_diagonal(rows: Tensor) -> Tensor:
    """`... P P-1 -> ... P P`, zeros on the diagonal; by padding alone: indices would be as large as what they place.

    Row after row, a zero stands first, and then one after every P numbers.
    """
    p = rows.shape[-2]
    tail = F.pad(rows.flatten(-2).unflatten(-1, (p - 1, p)), (0, 1))  # ... P-1 P+1
    return F.pad(tail.flatten(-2), (1, 0)).unflatten(-1, (p, p))


def ungroup(weight: Tensor, groups: int) -> Tensor:
    """A grouped kernel as the dense one with zero blocks: `O C/G R S -> O C R S`."""
    if groups == 1:
        return weight
    o, cg, r, s = weight.shape
    dense = weight.new_zeros(groups, o // groups, groups, cg, r, s)
    index = torch.arange(groups, device=weight.device)
    dense[index, :, index] = weight.view(groups, o // groups, cg, r, s)  # G O/G C/G R S
    return dense.reshape(o, groups * cg, r, s)


def then_pointwise(kernel: Tensor, pointwise: Tensor) -> Tensor:
    """A dense kernel followed by a 1×1: `M C R S`, `O M 1 1 -> O C R S` (lemma L2)."""
    return torch.einsum("om,mcrs->ocrs", pointwise[..., 0, 0], kernel)
