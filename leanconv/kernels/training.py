"""Train on this project's own kernels: a model's layers call them, and stay the same modules with the same parameters.

    reason = available()                      # None, or why they cannot run here
    with use_training_kernels_(model):        # or: handle = use_training_kernels_(model); ...; handle.remove()
        train(model)

`leanconv.nn` and every other model stay plain PyTorch: layers are changed from outside, and back. What a kernel cannot
take (another device, float64, padding modes) PyTorch computes as before.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from leanconv.kernels import (
    composed_layers,
    gated_layers,
    hetconv_layers,
    narrow_groups,
    normalized_gates,
    recomputed,
    separable_layers,
    spconv_layers,
)
from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.dispatched import takes, through_dispatcher, type_of
from leanconv.kernels.rewritten import rewritten
from leanconv.ops import depthwise, gated_sum_training, pointwise
from leanconv.ops.gated_sum import gated_sum
from leanconv.ops.padded import sides

# The attribute of a layer that calls a kernel; in the layer's own dictionary it hides its class's. HetConv's says
# whether it runs as a group convolution.
_CONV, _BLEND, _GROUPED, _FORWARD = "_conv_forward", "_gated_sum", "grouped", "forward"
# Weights of a 1×1 up to which its kernel is not slower than oneDNN's: forward and backward, channels_last, one core of
# an EPYC (AVX2). At 128 px and batch 16, where both wait for memory: 8 channels of 16 to 8 1.5x, a whole map of 8 to 8
# 1.0x (batch 8: 3.0x); 16 to 32 at 32 px 2.2x, 32 to 64 1.1x to 1.4x, 64 to 64 1.07x, 128 to 256 .9x.
_MOST_WEIGHTS = 2048
# The same for whole maps of float32, which oneDNN need not copy: 16 to 16 channels at 64 px and batch 16 3.5 ms against
# 3.6, but 32 to 32 at 32 px 3.1 against 2.8.
_MOST_OF_WHOLE = 256
# Outputs below which most lanes of a vector would be idle, as in a network's head of one class.
_FEWEST_OUTPUTS = 4
# Channels of a whole channels_last map of float32 up to which oneDNN's depthwise kernel is faster, without dilation: 8
# channels at 128 px 7.8 ms against 9.5, 16 channels 13.2 against 15.4. Ours is for slices (9.3 against 11.2).
_NARROW = 16
Replacement = tuple[nn.Module, str, Any]  # a module, its attribute, and the attribute's value


def available() -> str | None:
    """Why the kernels for training cannot run here; None where they can."""
    return cpu.why_not()


class TrainingKernels:
    """What `use_training_kernels_` did, and the way back. As a context manager it ends with the block.

    Attributes: layers: names of the modules whose work kernels do. kinds: how many of each class.
    """

    def __init__(self, changed: Sequence[Replacement], layers: Mapping[str, nn.Module]) -> None:
        self._changed = list(changed)
        self.layers = list(layers)
        self.kinds = Counter(type(layer).__name__ for layer in layers.values())

    def remove(self) -> None:
        """Every layer as it was before; a second call does nothing. What others have put there since then stays."""
        for module, attribute, value in self._changed:
            if attribute == _GROUPED:
                module.__dict__[attribute] = True
            elif module.__dict__.get(attribute) is value:
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


def use_training_kernels_(model: nn.Module, *, recompute: bool = False) -> TrainingKernels:
    """Let layers of `model` call the kernels for training, from now until `remove()`.

    They are depthwise `nn.Conv2d`, 1×1 ones of few channels, and the gated sums of SPConv and SPLConv with the norms
    and the activation before them, which then pass their maps on (`normalized_gates`). A depthwise-separable layer that
    keeps the map's size, or both branches of such a SPLConv, run in one kernel (`separable_layers`), and so do a
    HetConv (`hetconv_layers`) and SPConv's branches (`spconv_layers`). They keep their input alone for the gradient,
    SPConv and SPLConv as a whole (`gated_layers`). A SPLConv of few channels with a stride computes its branches once
    more (`recomputed`).
    Results are channels_last.
    Other HetConvs and group convolutions, of narrow groups, run as the dense convolution they equal (`narrow_groups`),
    and so do depthwise-separable layers of several filters a channel (`composed_layers`).
    An `nn.BatchNorm2d` and the activation after it, with or without a residual between them, run in one kernel where
    the source of a module's `forward`, or its `nn.Sequential`, shows that they follow each other (`rewritten`).
    Parameters, state, mode and hooks stay as they are. Where `available()` gives a reason, no layer is changed.

    recompute: HetConv, and SPConv, SPLConv and depthwise-separable layers of many channels or with a stride keep less
        for the gradient too (`recomputed`). A step takes about as much memory as the dense network's then, and a layer
        1.2 to 1.4 times as long.
    """
    changed: list[Replacement] = []
    layers: dict[str, nn.Module] = {}
    modules = [] if available() is not None else list(model.named_modules())
    for name, module in modules:
        if {_CONV, _BLEND} & module.__dict__.keys():
            continue  # this layer calls them already
        if found := _replacements(module, recompute):
            layers[name] = module
        elif places := rewritten(module):
            found = [(module, _FORWARD, places[0])]
            paths = [f"{name}.{path}" if name else path for path in places[1]]
            layers |= {path: model.get_submodule(path) for path in paths}
        for each, attribute, value in found:
            each.__dict__[attribute] = value
        changed += found
    return TrainingKernels(changed, layers)


def _replacements(module: nn.Module, recompute: bool) -> list[Replacement]:
    """What changes in a layer, itself first; nothing where it has no kernel."""
    if isinstance(module, nn.Conv2d) and _is_depthwise(module):
        return [(module, _CONV, functools.partial(_conv_forward, module))]
    if isinstance(module, nn.Conv2d) and _is_pointwise(module):
        return [(module, _CONV, functools.partial(_pointwise_forward, module))]
    if isinstance(module, nn.Conv2d) and narrow_groups.is_narrow_conv(module):
        return [(module, _CONV, functools.partial(narrow_groups.conv_forward, module))]
    if getattr(type(module), "name", "") == "hetconv":
        return _hetconv_replacements(module, recompute)
    if composed := composed_layers.replacement(module):
        return [(module, *composed)]
    if branches := separable_layers.replacement(module) or spconv_layers.replacement(module):
        return [(module, *branches), *_gate_replacements(module, recompute, whole=True)]
    if recompute and (less := recomputed.replacement(module, None)):
        return [(module, *less)]
    return _gate_replacements(module, recompute)


def _hetconv_replacements(module: nn.Module, recompute: bool) -> list[Replacement]:
    """What changes in a HetConv: its work, and how the layer does what the kernel does not take."""
    own = hetconv_layers.replacement(module)
    found: list[Replacement] = [(module, *own)] if own else []
    if narrow_groups.is_narrow_hetconv(module):
        return [*found, (module, _GROUPED, False)]
    less = recomputed.replacement(module, None) if recompute else None
    return [*found, (module, *less)] if less else found


def _gate_replacements(module: nn.Module, recompute: bool, whole: bool = False) -> list[Replacement]:
    """What changes in a layer with a gated sum. `whole`: its branches are one operator."""
    if getattr(module, _BLEND, None) is not gated_sum:
        return []
    if (parts := normalized_gates.gated(module)) is None:
        return [(module, _BLEND, _gated_sum)]
    blend = functools.partial(_normalized_gated_sum, parts)
    less = recomputed.replacement(module, parts) if recompute or separable_layers.is_cheap(module) else None
    if whole:
        less = gated_layers.replacement(module, parts, less[1] if less else None)
    return [
        (module, _BLEND, blend),
        *([(module, *less)] if less else []),
        *((part, _FORWARD, functools.partial(normalized_gates.pass_on, parts, part)) for part in parts.parts),
    ]


def _is_depthwise(module: nn.Conv2d) -> bool:
    return (
        type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.groups == module.in_channels == module.out_channels
        and module.padding_mode == "zeros"
    )


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.kernel_size == module.stride == (1, 1)
        and module.padding in ((0, 0), "same", "valid")
        and module.groups == 1
        and module.in_channels * module.out_channels <= _MOST_WEIGHTS
        and module.out_channels >= _FEWEST_OUTPUTS
    )


def _conv_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.Conv2d._conv_forward`."""
    if not takes(x, weight, bias) or x.shape[1] != weight.shape[0]:
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    autocast = torch.is_autocast_enabled("cpu")
    plain = x.dtype == torch.float32 and layer.dilation == (1, 1) and not autocast
    if plain and x.shape[1] <= _NARROW and _is_whole(x):
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    left, right, top, bottom = sides(layer.kernel_size, layer.padding, layer.dilation)  # type: ignore[arg-type]
    geometry = (layer.stride, (top, bottom, left, right), layer.dilation)
    if through_dispatcher(x):
        y: Tensor = depthwise.depthwise_conv2d(x, weight, bias, *geometry)
        return y
    if type_of(x) not in cpu.TYPES:  # float16
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    return _Depthwise.apply(x.to(type_of(x)), weight, bias, *geometry)  # type: ignore[no-any-return]


def _is_whole(x: Tensor) -> bool:
    """Whether a map lies in channels_last without gaps. One of a channel, or of a pixel, counts as any layout."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _pointwise_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.Conv2d._conv_forward` of a 1×1."""
    if not takes(x, weight, bias) or x.shape[1] != weight.shape[1]:
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    autocast = torch.is_autocast_enabled("cpu")
    if weight.numel() > _MOST_OF_WHOLE and x.dtype == torch.float32 and not autocast and _is_whole(x):
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    matrix = weight[:, :, 0, 0]
    if through_dispatcher(x):
        y: Tensor = pointwise.pointwise_conv2d(x, matrix, bias)
        return y
    if type_of(x) not in cpu.TYPES:  # float16
        return nn.Conv2d._conv_forward(layer, x, weight, bias)
    return _Pointwise.apply(x.to(type_of(x)), matrix, bias)  # type: ignore[no-any-return]


def _gated_sum(a: Tensor, b: Tensor) -> Tensor:
    """`ops.gated_sum.gated_sum`."""
    if not takes(a, b) or a.dtype != b.dtype or a.shape != b.shape:
        return gated_sum(a, b)
    if through_dispatcher(a):
        y: Tensor = gated_sum_training.gated_sum(a, b)[0]
        return y
    return _GatedSum.apply(a, b)  # type: ignore[no-any-return]


def _normalized_gated_sum(parts: normalized_gates.Gated, a: Tensor, b: Tensor) -> Tensor:
    """The gated sum with the norms and the activation before it, which have passed their maps on."""
    if normalized_gates.watched(parts):  # they have not
        return _gated_sum(a, b)
    if not takes(a, b) or a.dtype != b.dtype or a.shape != b.shape or not normalized_gates.takes(parts, a):
        return _gated_sum(*normalized_gates.one_by_one(parts, a, b))
    return normalized_gates.together(parts, a, b, dispatched=through_dispatcher(a))


class _Depthwise(torch.autograd.Function):
    """`ops.depthwise.depthwise_conv2d`; a gradient that is itself to have one goes through the operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        depthwise.save(ctx, inputs, None)
        return cpu.result(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() or through_dispatcher(grad):
            return depthwise.of_result(ctx, grad)
        return depthwise.of_result(ctx, grad, cpu.data_gradient, cpu.kernel_gradient)


class _Pointwise(torch.autograd.Function):
    """`ops.pointwise.pointwise_conv2d`; a gradient that is itself to have one goes through the operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        pointwise.save(ctx, inputs, None)
        return cpu.pointwise(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled() or through_dispatcher(grad):
            return pointwise.of_result(ctx, grad)
        return pointwise.of_result(ctx, grad, cpu.pointwise, cpu.pointwise_gradients)


class _GatedSum(torch.autograd.Function):
    """`ops.gated_sum_training.gated_sum`, its first result; its gradient has none."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        y, gate = cpu.blend(a, b)
        ctx.save_for_backward(a, b, gate)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return gated_sum_training.backward(ctx, grad, None, cpu.blend_gradient)
