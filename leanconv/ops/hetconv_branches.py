"""Both branches of SPConv as one operator that trains. It keeps x alone.

    a = group convolution of x[:, :c], P groups, + matrix · z[:, :c]      b = plain_bias + plain · z[:, c:]

Where there is no stride, z is x, and the first is a HetConv whose groups are blocks (`ops.hetconv`). Else z has the
averages of stride×stride pixels, as wide as the k×k's result. MACs N·P·Q·(c·O·R·S/G + C·O), G groups, and twice as many
for the gradient; without a stride the centre's taps are counted once. The reference is here; `kernels.training`
gives the CPU its kernel. It has a fake kernel (it compiles with `fullgraph=True`), gradients of any order, a flop
formula and a rule for autocast. Arguments: `x` `N C H W`; `spatial` `O c/P R S`, R and S odd; `pointwise` `O c`;
`plain` `O C-c`; `plain_bias` `O`; all weights of x's type or float32; `geometry`: stride and dilation of the k×k, each
rows, columns. Maps that result are channels_last.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from leanconv.errors import BadInput
from leanconv.ops import hetconv, pointwise
from leanconv.ops.autocast import casts_its_map
from leanconv.ops.depthwise import NHWC, new_map

Ints = Sequence[int]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def check(x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, bias: Tensor | None, geometry: Ints) -> None:
    """Raise BadInput if shapes do not fit."""
    if x.dim() != 4 or [matrix.dim(), plain.dim()] != [2, 2] or matrix.shape[1] + plain.shape[1] != x.shape[1]:
        sizes = [list(each.shape) for each in (x, matrix, plain)]
        raise BadInput(f"SPConv's branches take a map N C H W and matrices whose inputs are its channels, got {sizes}")
    if plain.shape[0] != matrix.shape[0] or (bias is not None and bias.shape != plain.shape[:1]):
        raise BadInput(f"both of SPConv's branches have {matrix.shape[0]} outputs, got {list(plain.shape)}")
    if spatial.dim() != 4 or len(geometry) != 4:
        raise BadInput(
            f"SPConv's branches take weights O c/P R S, two strides and two dilations, got {list(spatial.shape)}, "
            f"{list(geometry)}"
        )
    hetconv.check(x[:, : matrix.shape[1]], spatial, matrix, None, *steps(spatial, geometry))


def steps(spatial: Tensor, geometry: Ints) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation of the k×k."""
    stride, dilation = list(geometry[:2]), list(geometry[2:])
    return stride, [d * (size // 2) for d, size in zip(dilation, spatial.shape[2:], strict=True)], dilation


def is_strided(geometry: Ints) -> bool:
    """Whether the 1×1s read averages, not the map."""
    return max(geometry[:2]) > 1


def averages(x: Tensor, geometry: Ints) -> Tensor:
    """What the 1×1s read."""
    return F.avg_pool2d(x, list(geometry[:2]), ceil_mode=True) if is_strided(geometry) else x


def of_averages(grad: Tensor, x: Tensor, geometry: Ints) -> Tensor:
    """The gradient of x by that of its averages."""
    stride = list(geometry[:2])
    found: Tensor = torch.ops.aten.avg_pool2d_backward(grad, x, stride, stride, [0, 0], True, True, None)
    return found


def centre(spatial: Tensor, matrix: Tensor, geometry: Ints) -> Tensor:
    """What the HetConv adds at a pixel itself: the 1×1, or zeros where that reads averages."""
    if not is_strided(geometry):
        return matrix
    return matrix.new_zeros(matrix.shape[0], matrix.shape[1] - spatial.shape[1])


def _composed(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, geometry: Ints, product: Any
) -> tuple[Tensor, Tensor]:
    c, z, own = matrix.shape[1], averages(x, geometry), steps(spatial, geometry)
    a = hetconv.composed(x[:, :c], spatial, centre(spatial, matrix, geometry), None, *own, True)
    if is_strided(geometry):
        a = a + product(z[:, :c], matrix, None)
    return a.contiguous(memory_format=NHWC), product(z[:, c:], plain, plain_bias)


def result(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, geometry: Ints
) -> tuple[Tensor, Tensor]:
    """a and b, `N O P Q`: the reference. Raises: BadInput if shapes do not fit."""
    check(x, spatial, matrix, plain, plain_bias, geometry)
    return _composed(x, spatial, matrix, plain, plain_bias, geometry, pointwise.result)


def gradient(
    grad: Tensor, plain_grad: Tensor, x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, geometry: Ints,
    of_x: bool,
) -> Gradients:  # fmt: skip
    """Those of x (if asked for, else no numbers), spatial, matrix, plain and plain_bias: the reference."""
    c, z, own, strided = matrix.shape[1], averages(x, geometry), steps(spatial, geometry), is_strided(geometry)
    to, *sums, _ = hetconv.gradient(grad, x[:, :c], spatial, centre(spatial, matrix, geometry), *own, of_x, True)
    if strided:
        sums[1] = pointwise.gradients(grad, z[:, :c])[0]
    sums += pointwise.gradients(plain_grad, z[:, c:])
    if of_x:
        rest = pointwise.result(plain_grad, plain.t(), None)
        if strided:
            flat = torch.cat([pointwise.result(grad, matrix.t(), None), rest], 1)
            to = F.pad(to, (0, 0, 0, 0, 0, x.shape[1] - c)) + of_averages(flat, x, geometry)
        else:
            to = torch.cat([to, rest], 1)
        to = to.contiguous(memory_format=NHWC)
    return to, *sums  # type: ignore[return-value]


hetconv_branches = torch.library.custom_op("leanconv::hetconv_branches", result, mutates_args=())
hetconv_branches_gradient = torch.library.custom_op("leanconv::hetconv_branches_gradient", gradient, mutates_args=())


@hetconv_branches.register_fake
def _(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, geometry: Ints
) -> tuple[Tensor, Tensor]:
    check(x, spatial, matrix, plain, plain_bias, geometry)
    size = output_size(x, spatial, geometry)
    return new_map(x, size), new_map(x, size)


@hetconv_branches_gradient.register_fake
def _(
    grad: Tensor, plain_grad: Tensor, x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, geometry: Ints,
    of_x: bool,
) -> Gradients:  # fmt: skip
    sums = new_sums(x, spatial, matrix, plain)
    return new_map(x, x.shape) if of_x else x.new_empty(0), *sums  # type: ignore[return-value]


def output_size(x: Tensor, spatial: Tensor, geometry: Ints) -> list[int]:
    """`N O P Q`."""
    return hetconv.output_size(x.shape, spatial.shape, *steps(spatial, geometry))


def new_sums(x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor) -> list[Tensor]:
    """Uninitialised gradients of spatial, matrix, plain and plain_bias."""
    dtype = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    sizes = spatial.shape, matrix.shape, plain.shape, plain.shape[:1]
    return [torch.empty(tuple(size), dtype=dtype, device=x.device) for size in sizes]


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the map and the weights."""
    ctx.save_for_backward(*inputs[:5])
    ctx.geometry = inputs[5]


def backward(ctx: Any, grad: Tensor, plain_grad: Tensor, every: Any = hetconv_branches_gradient) -> tuple[Any, ...]:
    """The gradient of `hetconv_branches`; `every`: what computes it."""
    inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[:5]
    if torch.is_grad_enabled():  # it is to have a gradient itself
        x, spatial, matrix, plain, bias = inputs
        outputs = _composed(x, spatial, matrix, plain, bias, ctx.geometry, pointwise.pointwise_conv2d)
        leaves = [each for each, need in zip(inputs, wanted, strict=True) if need]
        slopes = iter(torch.autograd.grad(outputs, leaves, [grad, plain_grad], create_graph=True))
        return *(next(slopes) if need else None for need in wanted), None
    return of_inputs(grad, plain_grad, (*inputs, ctx.geometry), wanted, every)


def of_inputs(
    grad: Tensor, plain_grad: Tensor, inputs: tuple[Any, ...], wanted: Sequence[bool], every: Any
) -> tuple[Any, ...]:
    """The gradients of the inputs that want one, of their types; None for the others."""
    *tensors, geometry = inputs
    found = every(grad, plain_grad, *tensors[:4], geometry, wanted[0])
    return *(
        each.to(given.dtype) if need else None for each, given, need in zip(found, tensors, wanted, strict=True)
    ), None  # fmt: skip


hetconv_branches.register_autograd(backward, setup_context=save)


def _flops(x: Ints, spatial: Ints, geometry: Ints) -> int:
    strided = is_strided(geometry)
    pixels = x[0] * -(-x[2] // geometry[0]) * -(-x[3] // geometry[1])
    return 2 * pixels * spatial[0] * (spatial[1] * (spatial[2] * spatial[3] - (not strided)) + x[1])


@register_flop_formula(torch.ops.leanconv.hetconv_branches)
def _(x: Any, spatial: Any, matrix: Any, plain: Any, bias: Any, geometry: Any, **named: Any) -> int:
    return _flops(x, spatial, geometry)


@register_flop_formula(torch.ops.leanconv.hetconv_branches_gradient)
def _(
    grad: Any, plain_grad: Any, x: Any, spatial: Any, matrix: Any, plain: Any, geometry: Any, of_x: bool, **named: Any
) -> int:
    return (1 + of_x) * _flops(x, spatial, geometry)


casts_its_map(hetconv_branches)
