"""Train on this project's own kernels: a model's layers call them, and stay the same modules with the same parameters.

    reason = available()                      # None, or why they cannot run here
    with use_training_kernels_(model):        # or: handle = use_training_kernels_(model); ...; handle.remove()
        train(model)

`leanconv.nn` and every other model stay plain PyTorch: layers are changed from outside, and back. What a kernel cannot
take (another device, float64, padding modes) PyTorch computes as before.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.kernels.cpu.training import TYPES, why_not
from leanconv.kernels.norm_relu import norms_before_relus
from leanconv.ops.batch_norm import batch_norm
from leanconv.ops.depthwise import depthwise_conv2d
from leanconv.ops.gated_sum import gated_sum
from leanconv.ops.gated_sum_training import gated_sum as trained_gated_sum
from leanconv.ops.padded import sides

# The attribute of a layer that calls a kernel; in the layer's own dictionary it hides its class's.
_CONV, _BLEND, _FORWARD = "_conv_forward", "_gated_sum", "forward"


def available() -> str | None:
    """Why the kernels for training cannot run here; None where they can."""
    return why_not()


class TrainingKernels:
    """What `use_training_kernels_` did, and the way back. As a context manager it ends with the block.

    Attributes: layers: names of the changed modules. kinds: how many of each class.
    """

    def __init__(self, changed: Sequence[tuple[str, nn.Module, str]]) -> None:
        self._changed = list(changed)
        self.layers = [name for name, _, _ in changed]
        self.kinds = Counter(type(module).__name__ for _, module, _ in changed)

    def remove(self) -> None:
        """Every layer as it was before; a second call does nothing."""
        for _, module, attribute in self._changed:
            module.__dict__.pop(attribute, None)
        self._changed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.kinds.items())) or "none fits"
        return f"{len(self.layers)} layers train on kernels: {counts}"


def use_training_kernels_(model: nn.Module) -> TrainingKernels:
    """Let layers of `model` call the kernels for training, from now until `remove()`.

    They are: depthwise `nn.Conv2d`; `nn.BatchNorm2d`, together with the `nn.ReLU` that alone reads its result; the
    gated sums of SPConv and SPLConv. Parameters, state, mode and hooks stay as they are. Results are channels_last.
    Where `available()` gives a reason, no layer is changed.
    """
    changed: list[tuple[str, nn.Module, str]] = []
    if available() is not None:
        return TrainingKernels(changed)

    def change(name: str, module: nn.Module, attribute: str, call: Callable[..., Tensor]) -> None:
        module.__dict__[attribute] = call
        changed.append((name, module, attribute))

    names = {module: name for name, module in model.named_modules()}
    taken = {m for m in names if {_CONV, _BLEND, _FORWARD} & m.__dict__.keys()}  # by kernels already, or by others
    relus = {norm: relu for norm, relu in norms_before_relus(model).items() if not {norm, relu} & taken}
    for module, name in names.items():
        if module in taken:
            continue
        if _is_depthwise(module):
            change(name, module, _CONV, functools.partial(_conv_forward, module))
        elif getattr(module, _BLEND, None) is gated_sum:
            change(name, module, _BLEND, _gated_sum)
        elif type(module) is nn.BatchNorm2d:
            change(name, module, _FORWARD, functools.partial(_norm_forward, module, relu=module in relus))
            if module in relus:
                change(names[relus[module]], relus[module], _FORWARD, _as_it_is)
    return TrainingKernels(changed)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.groups == module.in_channels == module.out_channels
        and module.padding_mode == "zeros"
    )


def _fits(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether kernels take a map with these weights: else PyTorch computes the layer."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in TYPES
        and all(w is None or w.dtype in (x.dtype, torch.float32) for w in weights)
    )


def _conv_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.Conv2d._conv_forward`."""
    if not _fits(x, weight, bias):
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    padding = (0, 0) if layer.padding == "valid" else layer.padding
    left, right, top, bottom = sides(layer.kernel_size, padding, layer.dilation)  # type: ignore[arg-type]
    y: Tensor = depthwise_conv2d(x, weight, bias, layer.stride, (top, bottom, left, right), layer.dilation)
    return y


def _gated_sum(a: Tensor, b: Tensor) -> Tensor:
    """`ops.gated_sum.gated_sum`."""
    if not _fits(a) or a.dtype != b.dtype or a.shape != b.shape:
        return gated_sum(a, b)
    y: Tensor = trained_gated_sum(a, b)[0]
    return y


def _norm_forward(layer: nn.BatchNorm2d, x: Tensor, *, relu: bool) -> Tensor:
    """`nn.BatchNorm2d.forward`, and the ReLU behind it."""
    own = layer.training or layer.running_mean is None  # statistics of this batch
    pixels = x.numel() // max(1, x.shape[1]) if x.dim() == 4 else 0
    if not own or pixels < 2 or not _fits(x, layer.weight, layer.bias):
        y = nn.BatchNorm2d.forward(layer, x)
        return F.relu(y) if relu else y
    y, mean, var = batch_norm(x, layer.weight, layer.bias, layer.eps, relu)
    if layer.training and layer.track_running_stats and layer.running_mean is not None:
        with torch.no_grad():
            share: Any = layer.momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(1)
                share = 1.0 / layer.num_batches_tracked.float() if share is None else share
            share = 0.0 if share is None else share
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
            unbiased = (var * (pixels / (pixels - 1))).to(layer.running_mean.dtype)
            layer.running_var.lerp_(unbiased, share)  # type: ignore[union-attr]
    return y


def _as_it_is(x: Tensor) -> Tensor:
    """A ReLU whose work the layer before it does."""
    return x
