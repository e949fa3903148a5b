"""Both branches of SPConv as one operator that trains. It keeps x alone.

    a = group convolution of x[:, :c], P groups, + pointwise · x[:, :c]      b = plain_bias + plain · x[:, c:]

The first is a HetConv whose groups are blocks (`ops.hetconv`), of the map's size. MACs N·H·W·(c·O·R·S/P + C·O), and
twice as many for the gradient, where the centre's taps are counted once. The reference is here; `kernels.training`
gives the CPU its kernel. It has a fake kernel (it compiles with `fullgraph=True`), gradients of any order, a flop
formula and a rule for autocast. Arguments: `x` `N C H W`; `spatial` `O c/P R S`, R and S odd; `pointwise` `O c`;
`plain` `O C-c`; `plain_bias` `O`; all weights of x's type or float32; `dilation` a pair. Maps that result are
channels_last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from leanconv.errors import BadInput
from leanconv.ops import hetconv, pointwise
from leanconv.ops.depthwise import NHWC, new_map

Ints = Sequence[int]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def check(x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, bias: Tensor | None, dilation: Ints) -> None:
    """Raise BadInput if shapes do not fit."""
    if x.dim() != 4 or [matrix.dim(), plain.dim()] != [2, 2] or matrix.shape[1] + plain.shape[1] != x.shape[1]:
        sizes = [list(each.shape) for each in (x, matrix, plain)]
        raise BadInput(f"SPConv's branches take a map N C H W and matrices whose inputs are its channels, got {sizes}")
    if plain.shape[0] != matrix.shape[0] or (bias is not None and bias.shape != plain.shape[:1]):
        raise BadInput(f"both of SPConv's branches have {matrix.shape[0]} outputs, got {list(plain.shape)}")
    if spatial.dim() != 4 or len(dilation) != 2:
        raise BadInput(
            f"SPConv's branches take weights O c/P R S and two dilations, got {list(spatial.shape)}, {dilation}"
        )
    hetconv.check(x[:, : matrix.shape[1]], spatial, matrix, None, *geometry(spatial, dilation))


def geometry(spatial: Tensor, dilation: Ints) -> tuple[list[int], list[int], Ints]:
    """Stride, padding and dilation of the k×k."""
    return [1, 1], [d * (size // 2) for d, size in zip(dilation, spatial.shape[2:], strict=True)], dilation


def _composed(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, dilation: Ints, product: Any
) -> tuple[Tensor, Tensor]:
    c = matrix.shape[1]
    a = hetconv.composed(x[:, :c], spatial, matrix, None, *geometry(spatial, dilation), True)
    return a.contiguous(memory_format=NHWC), product(x[:, c:], plain, plain_bias)


def result(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, dilation: Ints
) -> tuple[Tensor, Tensor]:
    """a and b, `N O H W`: the reference. Raises: BadInput if shapes do not fit."""
    check(x, spatial, matrix, plain, plain_bias, dilation)
    return _composed(x, spatial, matrix, plain, plain_bias, dilation, pointwise.result)


def gradient(
    grad: Tensor, plain_grad: Tensor, x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, dilation: Ints,
    of_x: bool,
) -> Gradients:  # fmt: skip
    """Those of x (if asked for, else no numbers), spatial, matrix, plain and plain_bias: the reference."""
    c, own = matrix.shape[1], geometry(spatial, dilation)
    to, *sums, _ = hetconv.gradient(grad, x[:, :c], spatial, matrix, *own, of_x, True)
    sums += pointwise.gradients(plain_grad, x[:, c:])
    if of_x:
        to = torch.cat([to, pointwise.result(plain_grad, plain.t(), None)], 1).contiguous(memory_format=NHWC)
    return to, *sums  # type: ignore[return-value]


hetconv_branches = torch.library.custom_op("leanconv::hetconv_branches", result, mutates_args=())
hetconv_branches_gradient = torch.library.custom_op("leanconv::hetconv_branches_gradient", gradient, mutates_args=())


@hetconv_branches.register_fake
def _(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, dilation: Ints
) -> tuple[Tensor, Tensor]:
    check(x, spatial, matrix, plain, plain_bias, dilation)
    size = [x.shape[0], matrix.shape[0], *x.shape[2:]]
    return new_map(x, size), new_map(x, size)


@hetconv_branches_gradient.register_fake
def _(
    grad: Tensor, plain_grad: Tensor, x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, dilation: Ints,
    of_x: bool,
) -> Gradients:  # fmt: skip
    sums = new_sums(x, spatial, matrix, plain)
    return new_map(x, x.shape) if of_x else x.new_empty(0), *sums  # type: ignore[return-value]


def new_sums(x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor) -> list[Tensor]:
    """Uninitialised gradients of spatial, matrix, plain and plain_bias."""
    dtype = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    sizes = spatial.shape, matrix.shape, plain.shape, plain.shape[:1]
    return [torch.empty(tuple(size), dtype=dtype, device=x.device) for size in sizes]


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the map and the weights."""
    ctx.save_for_backward(*inputs[:5])
    ctx.dilation = inputs[5]


def backward(ctx: Any, grad: Tensor, plain_grad: Tensor, every: Any = hetconv_branches_gradient) -> tuple[Any, ...]:
    """The gradient of `hetconv_branches`; `every`: what computes it."""
    inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[:5]
    if torch.is_grad_enabled():  # it is to have a gradient itself
        x, spatial, matrix, plain, bias = inputs
        outputs = _composed(x, spatial, matrix, plain, bias, ctx.dilation, pointwise.pointwise_conv2d)
        leaves = [each for each, need in zip(inputs, wanted, strict=True) if need]
        slopes = iter(torch.autograd.grad(outputs, leaves, [grad, plain_grad], create_graph=True))
        return *(next(slopes) if need else None for need in wanted), None
    return of_inputs(grad, plain_grad, (*inputs, ctx.dilation), wanted, every)


def of_inputs(
    grad: Tensor, plain_grad: Tensor, inputs: tuple[Any, ...], wanted: Sequence[bool], every: Any
) -> tuple[Any, ...]:
    """The gradients of the inputs that want one, of their types; None for the others."""
    *tensors, dilation = inputs
    found = every(grad, plain_grad, *tensors[:4], dilation, wanted[0])
    return *(
        each.to(given.dtype) if need else None for each, given, need in zip(found, tensors, wanted, strict=True)
    ), None  # fmt: skip


hetconv_branches.register_autograd(backward, setup_context=save)


def _flops(x: Ints, spatial: Ints, plain: Ints) -> int:
    return 2 * x[0] * x[2] * x[3] * plain[0] * (spatial[1] * (spatial[2] * spatial[3] - 1) + x[1])


@register_flop_formula(torch.ops.leanconv.hetconv_branches)
def _(x: Any, spatial: Any, matrix: Any, plain: Any, *rest: Any, **named: Any) -> int:
    return _flops(x, spatial, plain)


@register_flop_formula(torch.ops.leanconv.hetconv_branches_gradient)
def _(
    grad: Any, plain_grad: Any, x: Any, spatial: Any, matrix: Any, plain: Any, dilation: Any, of_x: bool, **named: Any
) -> int:
    return (1 + of_x) * _flops(x, spatial, plain)


_AUTOCAST = torch.library.Library("leanconv", "IMPL")


def _autocast(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Cast the map to autocast's type. The weights stay as they are: kernels cast those that they multiply."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        if x.dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = x.to(torch.get_autocast_dtype("cpu"))
        found: tuple[Tensor, Tensor] = hetconv_branches(x, *rest)
        return found


_AUTOCAST.impl("hetconv_branches", _autocast, "AutocastCPU")
