"""Readers: from an aten operator to nodes of the graph. An operator without a reader, or refused by it, stays a call.

A reader takes the capture, the program's node and all its arguments with defaults. It returns None to refuse.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from leanconv.engine.fused.ir.graph import Node
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.call import Call, Ref
from leanconv.engine.fused.ir.kinds.data_movement import Cat, Pad, Slice
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add, Affine, Scale
from leanconv.engine.fused.ir.kinds.linear import Linear
from leanconv.engine.fused.ir.kinds.max_pool import MaxPool
from leanconv.engine.fused.ir.kinds.reductions import Average, Sum
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.ir.stages import Stage
from leanconv.ops.forms import Sides

aten = torch.ops.aten
Reader = Callable[[Any, fx.Node, tuple[Any, ...]], Any]


def _conv(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, weight, bias, stride, padding, dilation, groups = args
    w, b = capture.fixed(weight), None if bias is None else capture.fixed(bias)
    if w is None or w.dim() != 4 or (bias is not None and b is None) or not w.is_floating_point():
        return None
    if not capture.shape(x)[0] or len(capture.shape(x)) != 4:
        return None
    sides = _same(w, _pair(dilation)) if padding == "same" else _sides((0, 0) if padding == "valid" else padding)
    stage = Stage(w.double(), None if b is None else b.double(), _pair(stride), sides, _pair(dilation), groups)
    return capture.add(Block((stage,)), [x], node)


def _pair(value: Any) -> tuple[int, int]:
    both = [value] if isinstance(value, int) else list(value)
    return (both[0], both[0]) if len(both) == 1 else (both[0], both[1])


def _sides(padding: Any) -> Sides:
    rows, columns = _pair(padding)
    return rows, rows, columns, columns


def _same(weight: Tensor, dilation: tuple[int, int]) -> Sides:
    rows, columns = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def _conv_transpose(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, weight, bias, stride, padding, output_padding, groups, dilation = args
    w, b = capture.fixed(weight), None if bias is None else capture.fixed(bias)
    if w is None or w.dim() != 4 or (bias is not None and b is None):
        return None
    plain = _pair(stride) == tuple(w.shape[2:]) == (2, 2) and _pair(padding) == _pair(output_padding) == (0, 0)
    if not plain or groups != 1 or _pair(dilation) != (1, 1):
        return None
    return capture.add(Upsample(w.double(), None if b is None else b.double()), [x], node)


def _norm(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Any:
    x, *rest, eps = args[0], *args[1:5], args[6]
    weight, bias, mean, var = (None if value is None else capture.fixed(value) for value in rest)
    if mean is None or var is None or len(capture.shape(x)) != 4:
        return None
    scale = 1 / torch.sqrt(var.double() + eps)
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
    return [capture.add(Affine(scale, shift), [x], node, x.meta["val"].shape), None, None]


def _act(name: str) -> Reader:
    return lambda capture, node, args: capture.add(Activation(name), [args[0]], node)


def _hardtanh(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    limits = {(0, 6): "relu6", (0, None): "relu"}
    low, high = (args[1], args[2]) if len(args) > 2 else (args[1], None)
    return capture.add(Activation(limits[low, high]), [args[0]], node) if (low, high) in limits else None


def _gelu(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node:
    return capture.add(Activation("gelu" if args[1] == "none" else "gelu_tanh"), [args[0]], node)


def _same_value(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node:
    return capture.value(args[0])


def _same_dtype(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    same = node.meta["val"].dtype == args[0].meta["val"].dtype
    return capture.value(args[0]) if same and capture.same_sizes(args[0], node) else None


def _binary(*, multiplies: bool) -> Reader:
    """Add and mul: of two maps, with one number per channel, with one number."""

    def read(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
        x, y = args[0], args[1]
        if len(args) > 2 and args[2] != 1:  # alpha
            return None
        if _is_fixed(capture, x):
            x, y = y, x
        if not isinstance(x, fx.Node) or len(capture.shape(x)) != 4:
            return None
        if not node.meta["val"].dtype.is_floating_point or x.meta["val"].dtype != node.meta["val"].dtype:
            return None  # integers, or type promotion by the other side
        if (per_channel := _per_channel(capture, y, capture.shape(x)[1])) is not None:
            ones, zeros = torch.ones_like(per_channel), torch.zeros_like(per_channel)
            affine = Affine(per_channel, zeros) if multiplies else Affine(ones, per_channel)
            return capture.add(affine, [x], node) if capture.shape(node) == capture.shape(x) else None
        if not isinstance(y, fx.Node) or capture.fixed(y) is not None:
            return None
        one, other = capture.shape(x), capture.shape(y)
        if not multiplies:
            return capture.add(Add(), [x, y], node) if one == other else None
        if one == (*other[:2], 1, 1) and one != other:
            x, y, one, other = y, x, other, one
        return capture.add(Scale(), [x, y], node) if other == (*one[:2], 1, 1) and one != other else None

    return read


def _is_fixed(capture: Any, x: Any) -> bool:
    return not isinstance(x, fx.Node) or capture.fixed(x) is not None


def _per_channel(capture: Any, y: Any, channels: int) -> Tensor | None:
    """A number, or a constant that is one number per channel of `N C H W`."""
    if isinstance(y, int | float) and not isinstance(y, bool):
        return torch.full((channels,), float(y), dtype=torch.float64)
    value = capture.fixed(y) if isinstance(y, fx.Node) else None
    if value is None or not value.is_floating_point():
        return None
    if value.numel() == 1:
        return value.double().reshape(1).expand(channels)
    shape = (1,) * (4 - value.dim()) + tuple(value.shape)
    return value.double().reshape(channels) if shape == (1, channels, 1, 1) else None


def _cat(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    if len(capture.shape(node)) != 4 or args[1] not in (1, -3):
        return None
    return capture.add(Cat(), list(args[0]), node) if len(args[0]) > 1 else capture.value(args[0][0])


def _slice(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, dim, start, stop, step = args
    shape = capture.shape(x)
    if len(shape) != 4 or dim not in (1, -3) or step != 1:
        return None
    start, stop, _ = slice(start, stop).indices(shape[1])
    return capture.add(Slice(start, stop), [x], node) if start < stop else None


def _split(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Any:
    x, _, dim = args
    if len(capture.shape(x)) != 4 or dim not in (1, -3):
        return None
    slices, start = [], 0
    for value in node.meta["val"]:
        stop = start + int(value.shape[1])
        slices.append(capture.add(Slice(start, stop), [x], node, value.shape))
        start = stop
    return slices


def _mean(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, dims, keep = args[0], args[1], args[2]
    if len(capture.shape(x)) != 4 or sorted(d % 4 for d in dims or []) != [2, 3]:
        return None
    if args[3] not in (None, x.meta["val"].dtype):
        return None
    made = capture.add(Average(), [x], node, (*x.meta["val"].shape[:2], 1, 1))
    return made if keep else capture.add(Call(aten.flatten.using_ints, (Ref(0), 1)), [made], node)


def _adaptive(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    whole = _pair(args[1]) == (1, 1) and len(capture.shape(args[0])) == 4
    return capture.add(Average(), [args[0]], node) if whole else None


def _sum(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    """A sum over height and width: of a gated sum it becomes an average (passes/patterns.py)."""
    x, dims, keep, dtype = args
    if len(capture.shape(x)) != 4 or sorted(d % 4 for d in dims or []) != [2, 3] or not keep:
        return None
    if dtype not in (None, x.meta["val"].dtype):
        return None
    return capture.add(Sum(), [x], node)


def _view(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    """`N C 1 1 -> N C` as a flatten, which contains no sizes of this call."""
    shape, new = capture.shape(args[0]), capture.shape(node)
    if capture.same_sizes(args[0], node):
        return capture.value(args[0])
    if len(shape) == 4 and len(new) == 2 and new[0] == shape[0]:
        return capture.add(Call(aten.flatten.using_ints, (Ref(0), 1)), [args[0]], node)
    return None


def _pad(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, sides, value = args if len(args) == 3 else (args[0], args[1], args[3] or 0)
    if len(args) == 4 and args[2] != "constant":
        return None
    if len(capture.shape(x)) != 4 or len(sides) not in (2, 4) or value != 0 or min(sides) < 0:
        return None
    left, right, top, bottom = tuple(sides) + (0,) * (4 - len(sides))
    return capture.add(Pad((top, bottom, left, right)), [x], node)


def _max_pool(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, kernel, stride, padding, dilation, ceil = args
    if len(capture.shape(x)) != 4 or _pair(dilation) != (1, 1) or ceil:
        return None
    return capture.add(MaxPool(_pair(kernel), _pair(stride or kernel), _sides(padding)), [x], node)


def _average_pool(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    """A depthwise convolution whose taps are all one over their number: fused as any other."""
    x, kernel, stride, padding, ceil, zeros_count, divisor = args
    if len(capture.shape(x)) != 4 or not capture.shape(x)[0] or not x.meta["val"].is_floating_point():
        return None
    if ceil or divisor is not None or (any(_pair(padding)) and not zeros_count):
        return None
    (r, s), c = _pair(kernel), capture.shape(x)[1]
    taps = torch.full((c, 1, r, s), 1 / (r * s), dtype=torch.float64)
    stage = Stage(taps, None, _pair(stride or kernel), _sides(padding), groups=c)
    return capture.add(Block((stage,)), [x], node)


def _linear(capture: Any, node: fx.Node, args: tuple[Any, ...]) -> Node | None:
    x, weight, bias = args
    w, b = capture.fixed(weight), None if bias is None else capture.fixed(bias)
    if w is None or (bias is not None and b is None) or len(capture.shape(x)) != 2:
        return None
    return capture.add(Linear(w, b), [x], node)


PADS = frozenset({aten.constant_pad_nd.default, aten.pad.default})
SHAPED = frozenset({aten.view.default, aten.reshape.default, aten.expand.default})


def may_fix(node: fx.Node) -> bool:
    """Whether a node's reader may replace its sizes by their values in the captured call.

    Readers of views look at shapes alone. The pad of a convolution moves into its block: speed at this size counts more
    than other sizes. (Where another size needs other pads, the given model answers.)
    """
    return node.target in SHAPED or (node.target in PADS and all("conv2d" in str(user.target) for user in node.users))


READERS: dict[Any, Reader] = {
    aten.conv2d.default: _conv, aten.conv2d.padding: _conv,
    aten.conv_transpose2d.input: _conv_transpose,
    aten._native_batch_norm_legit_no_training.default: _norm,
    aten.relu.default: _act("relu"), aten.relu6.default: _act("relu6"), aten.silu.default: _act("silu"),
    aten.hardswish.default: _act("hardswish"), aten.hardsigmoid.default: _act("hardsigmoid"),
    aten.sigmoid.default: _act("sigmoid"), aten.hardtanh.default: _hardtanh, aten.clamp.default: _hardtanh,
    aten.clamp_min.default: _hardtanh, aten.gelu.default: _gelu,
    aten.clone.default: _same_value, aten.alias.default: _same_value, aten.detach.default: _same_value,
    aten.contiguous.default: _same_value, aten.dropout.default: _same_value, aten.lift_fresh_copy.default: _same_value,
    aten.to.dtype: _same_dtype, aten._to_copy.default: _same_dtype, aten.expand.default: _same_dtype,
    aten.add.Tensor: _binary(multiplies=False), aten.mul.Tensor: _binary(multiplies=True),
    aten.cat.default: _cat, aten.slice.Tensor: _slice,
    aten.split_with_sizes.default: _split, aten.split.Tensor: _split, aten.chunk.default: _split,
    aten.mean.dim: _mean, aten.adaptive_avg_pool2d.default: _adaptive, aten.sum.dim_IntList: _sum,
    aten.view.default: _view, aten.reshape.default: _view, aten.flatten.using_ints: _view,
    aten.constant_pad_nd.default: _pad, aten.pad.default: _pad,
    aten.max_pool2d.default: _max_pool, aten.avg_pool2d.default: _average_pool, aten.linear.default: _linear,
}  # fmt: skip
