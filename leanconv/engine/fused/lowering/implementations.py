"""How each kind of node can be run: one entry per form, tried and timed by autotune.py. Here: what PyTorch brings.

A form is made for one node and gives a function of the node's inputs. Values are channels_last wherever they have four
dimensions; a function may get others (from a caller, from an operator of `call`) and converts them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.engine.fused.ir.block import Block, Gated, Stage, activate
from leanconv.engine.fused.ir.graph import Node, Ref
from leanconv.engine.fused.lowering.kernels import kernel, split
from leanconv.engine.fused.lowering.normalization import AROUND_A_PIVOT
from leanconv.engine.fused.lowering.unfused import Run, chain, shuffled
from leanconv.kernels import Target, to_channels_last
from leanconv.ops.exact import exact_mean

LAST = torch.channels_last


@dataclass(frozen=True)
class Implementation:
    """`make(node)` gives the function, or None where the form does not cover the node.

    `of_target`: it depends on the target, `make(node, target=...)`; None is this machine.
    """

    name: str
    make: Callable[..., Run | None]
    of_target: bool = False

    def on(self, target: Target | None) -> "Implementation":
        """The implementation for a target."""
        return Implementation(self.name, partial(self.make, target=target)) if self.of_target else self


def _aten_stage(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run:
    """F.conv2d, the activation after it."""
    weight = stage.weight.to(dtype).contiguous(memory_format=LAST)
    bias = None if stage.bias is None else stage.bias.to(dtype)
    left, _, top, _ = stage.sides
    padding = (top, left) if stage.symmetric else (0, 0)
    sides = None if stage.symmetric else stage.sides
    act = IN_PLACE.get(stage.act) or (partial(activate, act=stage.act) if stage.act else None)

    def run(x: Tensor) -> Tensor:
        if sides is not None:
            x = F.pad(x, sides)
        y = torch.conv2d(to_channels_last(x), weight, bias, stage.stride, padding, stage.dilation, stage.groups)
        return y if act is None else act(y)

    return run


IN_PLACE: dict[str, Run] = {
    "relu": torch.relu_, "sigmoid": torch.sigmoid_, "silu": partial(F.silu, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True), "hardsigmoid": partial(F.hardsigmoid, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
}  # fmt: skip

# The activations that oneDNN applies to a convolution's result: name, scalars, algorithm.
ONEDNN_ACTS: dict[str, tuple[str, list[float], str]] = {
    "": ("none", [], ""), "relu": ("relu", [], ""), "relu6": ("hardtanh", [0.0, 6.0], ""), "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""), "hardsigmoid": ("hardsigmoid", [], ""), "sigmoid": ("sigmoid", [], ""),
    "gelu": ("gelu", [], "none"), "gelu_tanh": ("gelu", [], "tanh"),
}  # fmt: skip


def _onednn_stage(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
    """oneDNN's convolution with its weights packed once and the activation in the same pass."""
    if stage.act not in ONEDNN_ACTS or not stage.symmetric or not _has_onednn(dtype):
        return None
    padding, stride, dilation = [stage.sides[2], stage.sides[0]], list(stage.stride), list(stage.dilation)
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        stage.weight.to(dtype).contiguous(), padding, stride, dilation, stage.groups, list(shape)
    )
    bias = None if stage.bias is None else stage.bias.to(dtype)
    op, act, groups = torch.ops.mkldnn._convolution_pointwise.default, ONEDNN_ACTS[stage.act], stage.groups

    def run(x: Tensor) -> Tensor:
        return op(to_channels_last(x), packed, bias, padding, stride, dilation, groups, *act)  # type: ignore[no-any-return]

    return run


def _has_onednn(dtype: torch.dtype) -> bool:
    return torch.backends.mkldnn.is_available() and dtype in (torch.float32, torch.bfloat16)


def _mixed(node: Node, target: Target | None = None) -> Run | None:
    """Stencils in a kernel, the product in oneDNN: where there is a unit for it, which Halide does not use."""
    if node.dtype != torch.bfloat16 or not (target or Target()).cpu.amx:
        return None
    return split(node, lambda tail: chain(tail, _onednn_stage), target)


def _matrix(node: Node) -> Run | None:
    """1×1 on maps of one pixel: a small matrix product, which needs none of a convolution's preparations."""
    block: Block = node.data
    stage: Any = block.stages[0]
    if len(block.stages) > 1 or not stage.pointwise or node.shape[2:] != (1, 1) or block.pieces > 1:
        return None
    if block.gate or block.residual or block.parallel or block.average:
        return None
    weight = stage.weight[:, :, 0, 0].to(node.dtype).contiguous()
    bias = None if stage.bias is None else stage.bias.to(node.dtype)
    act = IN_PLACE.get(stage.act) or partial(activate, act=stage.act)

    def run(x: Tensor) -> Tensor:
        if x.shape[2:] != (1, 1):
            raise ValueError("this form is for maps of one pixel")
        return act(F.linear(x.flatten(1), weight, bias))[:, :, None, None]

    return run


# The other kinds, which have one form in PyTorch.


def _gated(node: Node) -> Run:
    """a·ga + (W x)·gb + shift with the gate from the averages; the 1×1 carries gate and scale (batch 1) or not."""
    gated: Gated = node.data
    dtype, pieces = node.dtype, gated.pieces
    exact = torch.float32 if dtype.itemsize == 2 else dtype  # of the gate
    weight = gated.weight[:, :, 0, 0].to(exact).contiguous()
    kernel = gated.weight.to(dtype).contiguous(memory_format=LAST)
    bias = None if gated.bias is None else gated.bias.to(dtype)
    exact_bias = None if gated.bias is None else gated.bias.to(exact)
    scale = None if gated.scale is None else gated.scale.to(dtype)[:, None, None]
    shift = None if gated.shift is None else gated.shift.to(dtype)[:, None, None]

    def run(a: Tensor, mean_a: Tensor, *rest: Tensor) -> Any:
        x = rest[0] if pieces == 1 else torch.cat(rest[:pieces], 1)
        mean_x = rest[1] if pieces == 1 else torch.cat(rest[pieces:], 1)
        b = torch.conv2d(to_channels_last(x), kernel, bias)
        gate = torch.sigmoid_(mean_a - F.linear(mean_x.flatten(1), weight, exact_bias)[:, :, None, None])
        y = torch.lerp(b, a, gate.to(dtype))
        if scale is not None and shift is not None:
            y = torch.addcmul(shift, y, scale)
        y = activate(y, gated.act)
        return (y, exact_mean(y, keepdim=True)) if gated.average else y

    return run


def _upsample(node: Node) -> Run:
    weight = node.data.weight.to(node.dtype).contiguous(memory_format=LAST)
    bias = None if node.data.bias is None else node.data.bias.to(node.dtype)
    act = node.data.act
    return lambda x: activate(torch.conv_transpose2d(to_channels_last(x), weight, bias, (2, 2)), act)


def _affine(node: Node) -> Run:
    scale, shift = (v.to(node.dtype)[:, None, None] for v in node.data)
    return lambda x: torch.addcmul(shift, x, scale)


def _pad(node: Node) -> Run:
    sides = node.data
    return lambda x: F.pad(x, sides)


def _max_pool(node: Node) -> Run:
    kernel, stride, padding, average = node.data

    def run(x: Tensor) -> Any:
        y = torch.max_pool2d(to_channels_last(x), kernel, stride, padding)
        return (y, exact_mean(y, keepdim=True)) if average else y

    return run


def _linear(node: Node) -> Run:
    weight, bias, act = node.data.weight.to(node.dtype), node.data.bias, node.data.act
    bias = None if bias is None else bias.to(node.dtype)
    return (lambda x: activate(F.linear(x, weight, bias), act)) if act else (lambda x: F.linear(x, weight, bias))


def _slice(node: Node) -> Run:
    start, length = node.data[0], node.data[1] - node.data[0]
    return lambda x: x.narrow(1, start, length)


def _call(node: Node) -> Run:
    call = replace(node.data, target=AROUND_A_PIVOT.get(node.data.target, node.data.target))
    half = node.dtype.itemsize == 2 and node.dtype.is_floating_point  # what a call of its own makes wider is rounded
    if call.args == tuple(map(Ref, range(len(node.inputs)))) and not call.kwargs and not half:
        return call.target  # type: ignore[no-any-return]

    def run(*inputs: Any) -> Any:
        made = call(*inputs)
        return made.to(node.dtype) if half and isinstance(made, Tensor) and made.dtype == torch.float32 else made

    return run


IMPLEMENTATIONS: dict[str, list[Implementation]] = {
    "block": [
        Implementation("onednn", lambda node: chain(node, _onednn_stage)),
        Implementation("aten", lambda node: chain(node, _aten_stage)),
        Implementation("matrix", _matrix),
        Implementation("kernel", kernel, of_target=True),
        Implementation("split", lambda node, target=None: split(node, target=target), of_target=True),
        Implementation("kernel+onednn", _mixed, of_target=True),
    ],
    "gated": [Implementation("aten", _gated), Implementation("kernel", kernel, of_target=True)],
    "upsample": [Implementation("aten", _upsample), Implementation("kernel", kernel, of_target=True)],
    "affine": [Implementation("aten", _affine)],
    "act": [Implementation("aten", lambda node: partial(activate, act=node.data))],
    "scale": [Implementation("aten", lambda node: lambda x, gate: x * gate.to(x.dtype))],
    "add": [Implementation("aten", lambda node: torch.add)],
    "shuffle": [Implementation("aten", lambda node: lambda x: shuffled(x, node.data[1]))],
    "cat": [Implementation("aten", lambda node: lambda *pieces: torch.cat(pieces, 1))],
    "slice": [Implementation("aten", _slice)],
    "average": [Implementation("aten", lambda node: partial(exact_mean, keepdim=True))],
    "sum": [Implementation("aten", lambda node: lambda x: x.sum((2, 3), keepdim=True, dtype=node.dtype))],
    "cast": [Implementation("aten", lambda node: lambda x: x.to(node.dtype))],
    "pad": [Implementation("aten", _pad)],
    "max_pool": [Implementation("aten", _max_pool), Implementation("kernel", kernel, of_target=True)],
    "linear": [Implementation("aten", _linear)],
    "call": [Implementation("aten", _call)],
}


def plain_implementation(node: Node) -> Any:
    """A node as PyTorch runs it."""
    return next(form for form in IMPLEMENTATIONS[node.kind] if form.name == "aten").make(node)
