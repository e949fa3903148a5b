"""The algebra of one fold: a layer takes over the BatchNorm that follows it, or its own constant parts."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.convert.tree import Site
from leanconv.copies import copied
from leanconv.nn import Operator
from leanconv.ops.fold import TRANSPOSED, bn_scale_shift, scale_conv_

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# torchvision's and timm's: not subclasses of BatchNorm, and the same formula on buffers.
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


def is_norm(module: nn.Module) -> bool:
    """A normalisation by running statistics: torch's BatchNorms and their subclasses, frozen ones, timm's with act."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module).__name__ in _FROZEN


def norm_obstacle(norm: nn.Module) -> str | None:
    """Why the normalisation itself cannot be folded, or None."""
    known = type(norm) in _PLAIN_NORMS or type(norm).__name__ in _FROZEN or _has_act(norm)
    if not known:
        return f"{type(norm).__name__} is an unknown subclass"
    if not (isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)):
        return "keeps no running statistics"
    return None


def _has_act(norm: nn.Module) -> bool:
    """timm's BatchNormAct2d and its like: a BatchNorm, then `drop`, then `act`, recognised by these two parts."""
    return all(isinstance(norm._modules.get(part), nn.Module) for part in ("drop", "act"))


def tail(norm: nn.Module) -> nn.Module:
    """What remains of a normalisation once its affine is absorbed: its activation (and dropout), or nothing."""
    if not _has_act(norm):
        return nn.Identity().eval()
    children = cast(nn.Module, norm.drop), cast(nn.Module, norm.act)
    parts = [part for part in children if type(part) is not nn.Identity] or [nn.Identity()]
    return (parts[0] if len(parts) == 1 else nn.Sequential(*parts)).eval()


def absorbs(layer: nn.Module) -> bool:
    """Whether the layer is of a kind that can take over a scale and a shift of its output channels."""
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return False
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | Operator) or type(layer) in (*TRANSPOSED, nn.Linear)


def absorb_(layer: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Absorb `y · scale + shift` into the weights, in place; False where the layer cannot do that exactly."""
    if isinstance(layer, Operator):
        return layer.scale_output_(scale, shift)
    scale_conv_(layer, scale, shift)
    return True


def folded(layer: nn.Module, norm: nn.Module | None) -> nn.Module | None:
    """A copy of the layer with the norm absorbed, in its cheapest form; None where that is inexact or overflows."""
    new = copied(layer)
    if norm is not None:
        scale, shift = bn_scale_shift(cast(nn.BatchNorm2d, norm))
        if scale.numel() != getattr(layer, "out_channels", getattr(layer, "out_features", None)):
            return None  # it normalises another axis: a linear layer on `N L C`, a convolution without batch dimension
        scale, shift = scale.to(_device(layer)), shift.to(_device(layer))
        if not absorb_(new, scale, shift):
            plain = cast(Operator, new).fold()
            if plain is new or not absorbs(plain) or not absorb_(plain, scale, shift):
                return None
            new = plain
    if isinstance(new, Operator):
        new = new.fold()
    return new.eval() if all(bool(torch.isfinite(p).all()) for p in new.parameters()) else None


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


def perform(layer: Site, norm: Site | None) -> Callable[[], None]:
    """Fold in place, in the model that holds the two sites; the returned function takes it back.

    A plain layer stays the same object with new numbers, an operator is replaced by what it folds to.
    """
    old, old_norm = layer.module, norm.module if norm else None
    new = cast(nn.Module, folded(old, old_norm))
    state: dict[str, Any] = {}
    if isinstance(old, Operator):
        layer.replace(new)
    else:
        bias = old._parameters.get("bias")
        state = {"weight": cast(Tensor, old.weight).detach().clone(), "bias": bias}
        old_bias = None if bias is None else bias.detach().clone()
        _take_numbers(old, new)
    if norm is not None:
        norm.replace(tail(norm.module))

    @torch.inference_mode()
    def undo() -> None:
        if norm is not None:
            norm.replace(norm.module)
        if isinstance(old, Operator):
            layer.replace(old)
            return
        cast(Tensor, old.weight).copy_(state["weight"])
        old.bias = state["bias"]
        if old_bias is not None:
            cast(Tensor, old.bias).copy_(old_bias)

    return undo


@torch.inference_mode()  # inference tensors cannot be changed outside it
def _take_numbers(old: nn.Module, new: nn.Module) -> None:
    cast(Tensor, old.weight).copy_(cast(Tensor, new.weight))
    if old.bias is None:
        old.bias = new.bias
    else:
        cast(Tensor, old.bias).copy_(cast(Tensor, new.bias))
