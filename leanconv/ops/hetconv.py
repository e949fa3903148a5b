"""HetConv as one operator that trains: k×k kernels at a P-th of a filter's channels, and a 1×1 of all others.

    y[n,o] = bias[o] + Σ_{c of o's group} conv_kxk(x[n,c]; spatial[o,c]) + Σ_{other c} pointwise[o,c] · x[n,c]

Groups are those of the same number mod P, or `blocked`: P blocks of channels and of filters. A `pointwise` of all C
channels has a number for a filter's own ones too, which adds to their kernel: a group convolution plus a whole 1×1.
The 1×1's channels are read under the kernel's centre. MACs N·P·Q·O·C·(R·S/P + 1 - 1/P) with P = C over the channels
of `spatial`, and twice as many for the gradient. It keeps x alone, and moves no channel. The reference is here, a dense
convolution; `kernels.training` gives the CPU its kernel. It has a fake kernel (it compiles with `fullgraph=True`),
gradients of any order, a flop formula and a rule for autocast. Arguments: `x` `N C H W`; `spatial` `O C/P R S`, R and S
odd; `pointwise` `O C-C/P`, as `nn.HetConv2d` has them, or `O C`; `bias` `O`; all weights of x's type or float32;
`stride`, `padding` and `dilation` pairs. Maps that result are channels_last.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from leanconv.errors import BadInput
from leanconv.ops.autocast import casts_its_map
from leanconv.ops.depthwise import NHWC, new_map
from leanconv.ops.fold import pad_taps, with_diagonal
from leanconv.spec import out_length

Ints = Sequence[int]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def check(
    x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> None:
    """Raise BadInput if shapes do not fit."""
    sizes = [list(each.shape) for each in (x, spatial, pointwise)]
    if [len(size) for size in sizes] != [4, 4, 2]:
        raise BadInput(f"a HetConv takes a map N C H W and weights O C/P R S and O C-C/P, got {sizes}")
    (_, c, _, _), (o, own, r, s), rest = sizes
    if min(c, own) < 1 or c % own or c == own or o % (c // own) or rest not in ([o, c - own], [o, c]):
        raise BadInput(f"a HetConv of {c} channels takes weights O C/P R S and O C-C/P, P divides O, got {sizes[1:]}")
    if r % 2 == 0 or s % 2 == 0:
        raise BadInput(f"a HetConv's kernel has a centre, got {r}x{s}")
    if bias is not None and list(bias.shape) != [o]:
        raise BadInput(f"a HetConv of {o} outputs takes as many biases, got {list(bias.shape)}")
    if {len(stride), len(padding), len(dilation)} != {2} or min(*stride, *dilation) < 1 or min(padding) < 0:
        raise BadInput(
            f"a HetConv takes pairs of stride, padding and dilation, got {list(stride)}, {list(padding)}, "
            f"{list(dilation)}"
        )
    size = output_size(x.shape, spatial.shape, stride, padding, dilation)
    if min(size[2:]) < 1:
        raise BadInput(f"a HetConv leaves no pixel of a map {sizes[0]}: {size}")


def output_size(size: Ints, spatial: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    """`N O P Q` of a map `N C H W` and kernels `O C/P R S`."""
    lengths = (out_length(size[2 + i], spatial[2 + i], stride[i], dilation[i], 2 * padding[i]) for i in (0, 1))
    return [size[0], spatial[0], *lengths]


def dense_kernel(spatial: Tensor, pointwise: Tensor, part: int, blocked: bool = False) -> Tensor:
    """The kernel of the dense convolution that it equals, `O C R S`."""
    own, r, s = spatial.shape[1:]
    blocks = _grouped(spatial, part, blocked).permute(0, 2, 3, 4, 1)  # O/P C/P R S P
    dense = torch.diag_embed(blocks).permute(0, 4, 1, 5, 2, 3)  # O/P P C/P P R S
    if pointwise.shape[1] == own * part:
        return _in_order(dense, blocked) + pad_taps(pointwise[..., None, None], (r, s))
    live = _grouped(pointwise, part, blocked)  # O/P P C-C/P
    live = live.unflatten(2, (part - 1, own) if blocked else (own, part - 1))
    live = live.transpose(2, 3) if blocked else live
    full = with_diagonal(live.transpose(1, 2)).transpose(1, 2)[..., None, None]  # O/P P C/P P 1 1
    return _in_order(dense, blocked) + pad_taps(_in_order(full, blocked), (r, s))


def _grouped(weight: Tensor, part: int, blocked: bool) -> Tensor:
    """`O … -> O/P P …`."""
    return weight.unflatten(0, (part, -1)).transpose(0, 1) if blocked else weight.unflatten(0, (-1, part))


def _in_order(taps: Tensor, blocked: bool) -> Tensor:
    """`O/P P C/P P R S -> O C R S`."""
    return (taps.permute(1, 0, 3, 2, 4, 5) if blocked else taps).flatten(0, 1).flatten(1, 2)


def _live(dense: Tensor, own: int, full: bool, blocked: bool) -> tuple[Tensor, Tensor]:
    """The entries of a dense kernel that a HetConv has: `dense_kernel`'s gradient."""
    o, c, r, s = dense.shape
    p, centre = c // own, dense[:, :, r // 2, s // 2]
    if blocked:
        ordered = dense.view(p, o // p, p, own, r, s).permute(1, 0, 3, 2, 4, 5)
    else:
        ordered = dense.view(o // p, p, own, p, r, s)
    blocks = ordered.diagonal(dim1=1, dim2=3).permute(0, 4, 1, 2, 3)  # O/P P C/P R S
    blocks = (blocks.transpose(0, 1) if blocked else blocks).reshape(o, own, r, s)
    if full:
        return blocks, centre
    rows = ordered[..., r // 2, s // 2].transpose(1, 2)  # O/P C/P P P
    live = rows.flatten(-2)[..., 1:].unflatten(-1, (p - 1, p + 1))[..., :-1]  # behind each diagonal entry P others
    live = live.flatten(-2).unflatten(-1, (p, p - 1)).transpose(1, 2)  # O/P P C/P P-1
    live = live.permute(1, 0, 3, 2) if blocked else live
    return blocks, live.reshape(o, c - own)


def composed(
    x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints,
    blocked: bool = False,
) -> Tensor:  # fmt: skip
    """The dense convolution."""
    part = x.shape[1] // spatial.shape[1]
    kernel = dense_kernel(spatial.to(x.dtype), pointwise.to(x.dtype), part, blocked)
    return F.conv2d(x, kernel, None if bias is None else bias.to(x.dtype), stride, padding, dilation)


def result(
    x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints,
    blocked: bool = False,
) -> Tensor:  # fmt: skip
    """`N O P Q`, in x's type: the reference. Raises: BadInput if shapes do not fit."""
    check(x, spatial, pointwise, bias, stride, padding, dilation)
    return composed(x, spatial, pointwise, bias, stride, padding, dilation, blocked).contiguous(memory_format=NHWC)


def gradient(
    grad: Tensor, x: Tensor, spatial: Tensor, pointwise: Tensor, stride: Ints, padding: Ints, dilation: Ints,
    of_x: bool, blocked: bool = False,
) -> Gradients:  # fmt: skip
    """Those of x (if asked for, else no numbers), spatial, pointwise and bias: the reference.

    Sums are in float32 where the maps have a half type.
    """
    own, c = spatial.shape[1], x.shape[1]
    kernel = dense_kernel(spatial.to(x.dtype), pointwise.to(x.dtype), c // own, blocked)
    geometry = (stride, padding, dilation, False, (0, 0), 1)
    found, weight, _ = torch.ops.aten.convolution_backward(grad, x, kernel, None, *geometry, (of_x, True, False))
    weights = [each.to(_exact(x)).contiguous() for each in _live(weight, own, pointwise.shape[1] == c, blocked)]
    of_map = found.contiguous(memory_format=NHWC) if of_x else x.new_empty(0)
    return of_map, weights[0], weights[1], grad.sum((0, 2, 3), dtype=_exact(x))


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


hetconv2d = torch.library.custom_op("leanconv::hetconv2d", result, mutates_args=())
hetconv2d_gradient = torch.library.custom_op("leanconv::hetconv2d_gradient", gradient, mutates_args=())


@hetconv2d.register_fake
def _(
    x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints,
    blocked: bool = False,
) -> Tensor:  # fmt: skip
    check(x, spatial, pointwise, bias, stride, padding, dilation)
    return new_map(x, output_size(x.shape, spatial.shape, stride, padding, dilation))


@hetconv2d_gradient.register_fake
def _(
    grad: Tensor, x: Tensor, spatial: Tensor, pointwise: Tensor, stride: Ints, padding: Ints, dilation: Ints,
    of_x: bool, blocked: bool = False,
) -> Gradients:  # fmt: skip
    of_map = new_map(x, x.shape) if of_x else x.new_empty(0)
    of_spatial, of_pointwise, of_bias = new_sums(x, spatial, pointwise)
    return of_map, of_spatial, of_pointwise, of_bias


def new_sums(x: Tensor, spatial: Tensor, pointwise: Tensor) -> list[Tensor]:
    """Uninitialised gradients of spatial, pointwise and bias."""
    sizes = spatial.shape, pointwise.shape, spatial.shape[:1]
    return [torch.empty(tuple(size), dtype=_exact(x), device=x.device) for size in sizes]


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the map and the weights."""
    ctx.save_for_backward(*inputs[:4])
    ctx.geometry = inputs[4:]


_NONE = (None,) * 4  # stride, padding, dilation and arrangement have no gradient


def backward(ctx: Any, grad: Tensor, every: Any = hetconv2d_gradient) -> tuple[Any, ...]:
    """The gradient of `hetconv2d`; `every`: what computes it."""
    inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[:4]
    if torch.is_grad_enabled():  # it is to have a gradient itself
        leaves = [each for each, need in zip(inputs, wanted, strict=True) if need]
        found = iter(torch.autograd.grad(composed(*inputs, *ctx.geometry), leaves, grad, create_graph=True))
        return *(next(found) if need else None for need in wanted), *_NONE
    *geometry, blocked = ctx.geometry
    found = every(grad, *inputs[:3], *geometry, wanted[0], blocked)
    return *(
        each.to(given.dtype) if need else None for each, given, need in zip(found, inputs, wanted, strict=True)
    ), *_NONE  # fmt: skip


hetconv2d.register_autograd(backward, setup_context=save)


def _flops(pixels: int, spatial: Ints, pointwise: Ints) -> int:
    return 2 * pixels * spatial[0] * (spatial[1] * spatial[2] * spatial[3] + pointwise[1])


@register_flop_formula(torch.ops.leanconv.hetconv2d)
def _(x: Any, spatial: Any, pointwise: Any, bias: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return _flops(out_shape[0] * out_shape[2] * out_shape[3], spatial, pointwise)


@register_flop_formula(torch.ops.leanconv.hetconv2d_gradient)
def _(
    grad: Any, x: Any, spatial: Any, pointwise: Any, stride: Any, padding: Any, dilation: Any, of_x: bool, *rest: Any,
    **named: Any,
) -> int:  # fmt: skip
    return (1 + of_x) * _flops(grad[0] * grad[2] * grad[3], spatial, pointwise)


casts_its_map(hetconv2d)
