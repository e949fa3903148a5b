"""Train on this project's own kernels: a model's layers call them, and stay the same modules with the same parameters.

    reason = available()                      # None, or why they cannot run here
    with use_training_kernels_(model):        # or: handle = use_training_kernels_(model); ...; handle.remove()
        train(model)

`leanconv.nn` and every other model stay plain PyTorch: layers are changed from outside, and back. What a kernel cannot
take (another device, float64, padding modes) PyTorch computes as before.
"""

import functools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from leanconv.kernels.cpu.runtime import depthwise as kernels
from leanconv.kernels.cpu.runtime import gated_sum as blends
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops import depthwise as ops
from leanconv.ops import gated_sum_training as blend_ops
from leanconv.ops.gated_sum import gated_sum
from leanconv.ops.padded import sides

Ints = Sequence[int]
_TYPES = (torch.float32, torch.bfloat16)


def available() -> str | None:
    """Why the kernels for training cannot run here; None where they can."""
    return None if runtime() is not None else "no C compiler builds them: apt install gcc"


# The attribute of a layer that calls a kernel, beside its class's own.
_CONV, _BLEND = "_conv_forward", "_gated_sum"


class TrainingKernels:
    """What `use_training_kernels_` did: the layers by name, and the way back. A context manager that takes it back."""

    def __init__(self, changed: Sequence[tuple[str, nn.Module, str]]) -> None:
        self._changed = list(changed)
        self.layers = [name for name, _, _ in changed]

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
        return f"{len(self.layers)} layers train on kernels: {', '.join(self.layers)}"


def use_training_kernels_(model: nn.Module) -> TrainingKernels:
    """Let depthwise convolutions and gated sums of `model` call the kernels for training, from now until `remove()`.

    Parameters, state, mode and hooks stay as they are. Results are channels_last. Where `available()` gives a reason,
    no layer is changed.
    """
    changed: list[tuple[str, nn.Module, str]] = []
    if available() is None:
        for name, module in model.named_modules():
            if _CONV in module.__dict__ or _BLEND in module.__dict__:
                continue  # it calls them already
            if _is_depthwise(module):
                module.__dict__[_CONV] = functools.partial(_conv_forward, module)
                changed.append((name, module, _CONV))
            elif getattr(module, _BLEND, None) is gated_sum:
                module.__dict__[_BLEND] = _gated_sum
                changed.append((name, module, _BLEND))
    return TrainingKernels(changed)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.groups == module.in_channels == module.out_channels
        and module.padding_mode == "zeros"
    )


def _conv_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.Conv2d._conv_forward`, by the kernels where they take the map."""
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype not in _TYPES or weight.dtype not in (x.dtype, torch.float32):
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    padding = (0, 0) if layer.padding == "valid" else layer.padding
    left, right, top, bottom = sides(layer.kernel_size, padding, layer.dilation)  # type: ignore[arg-type]
    return ops.depthwise_conv2d(x, weight, bias, layer.stride, (top, bottom, left, right), layer.dilation)


def _gated_sum(a: Tensor, b: Tensor) -> Tensor:
    """`ops.gated_sum.gated_sum`, by the kernels where they take the maps."""
    if a.dim() != 4 or a.device.type != "cpu" or a.dtype not in _TYPES or a.dtype != b.dtype or a.shape != b.shape:
        return gated_sum(a, b)
    return blend_ops.gated_sum(a, b)[0]


def _takes(*maps: Tensor, weights: Sequence[Tensor | None] = ()) -> bool:
    """Whether the kernels run here and take these maps and weights."""
    kind = maps[0].dtype
    return (
        kind in _TYPES
        and all(x.dtype == kind and x.dim() == 4 and x.shape[1] for x in maps)
        and all(w is None or w.dtype in (kind, torch.float32) for w in weights)
        and available() is None
    )


def _packed(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.float().contiguous()


@ops.depthwise_conv2d.register_kernel("cpu")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    ops.check(x, weight, stride, padding, dilation)
    size = ops.output_size(x.shape, weight.shape[2:], stride, padding, dilation)
    if not _takes(x, weights=(weight, bias)) or min(size[2:]) < 1:
        return ops.result(x, weight, bias, stride, padding, dilation)
    y = ops.new_map(x, size)
    geometry = kernels.Geometry(x.shape, size, weight.shape[2:], stride, padding, dilation)
    kernels.forward(readable(x), _packed(weight), _packed(bias), y, geometry)
    return y


@ops.input_gradient.register_kernel("cpu")
def _(grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    if not _takes(grad, weights=(weight,)):
        return ops.data_gradient(grad, weight, size, stride, padding, dilation)
    x = ops.new_map(grad, size)
    geometry = kernels.Geometry(size, grad.shape, weight.shape[2:], stride, padding, dilation)
    kernels.input_gradient(readable(grad), _packed(weight), x, geometry)
    return x


@ops.weight_gradient.register_kernel("cpu")
def _(grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[Tensor, Tensor]:
    if not _takes(grad, x):
        return ops.kernel_gradient(grad, x, kernel, stride, padding, dilation)
    weight, bias = torch.empty(x.shape[1], 1, *kernel), torch.empty(x.shape[1])
    geometry = kernels.Geometry(x.shape, grad.shape, kernel, stride, padding, dilation)
    kernels.weight_gradient(readable(grad), readable(x), weight, bias, geometry)
    return weight, bias


@blend_ops.gated_sum.register_kernel("cpu")
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    blend_ops.check(a, b)
    if not _takes(a, b) or not a.numel():
        return blend_ops.result(a, b)
    y, gate = blend_ops.new_map(a), torch.empty(a.shape[:2])
    blends.forward(readable(a), readable(b), y, gate)
    return y, gate


@blend_ops.gated_sum_gradient.register_kernel("cpu")
def _(grad: Tensor, a: Tensor, b: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    if not _takes(grad, a, b) or not a.numel():
        return blend_ops.gradient(grad, a, b, gate)
    found = blend_ops.new_map(grad), blend_ops.new_map(grad)
    blends.gradients(readable(grad), readable(a), readable(b), gate.contiguous(), *found)
    return found
