"""Depthwise convolutions and a 1×1, with another 1×1 beside them, as one operator that trains. It keeps x alone.

    a = bias + M · D₂(D₁(x[:, :c]))          D: depthwise, stride 1, of the map's size; none, one or two of them
    b = plain_bias + Q · x[:, c:]            where there is a `plain`; else c = C, and b has no numbers

That is a depthwise-separable layer, or both branches of SPLConv. MACs N·H·W·(c·R·S of each D + c·O + (C - c)·O), and
twice as many for the gradient, which computes what lies between x and a once more. The reference is here;
`kernels.training` gives the CPU its kernel. It has a fake kernel (it compiles with `fullgraph=True`), gradients of any
order, a flop formula and a rule for autocast. Arguments: `x` `N C H W`; `first`, `second` `c 1 R S`; `matrix` `O c`
and `plain` `O C-c`; biases `O`; all weights of x's type or float32. `geometry`: top and left padding (the rest of it is
below and right) and both dilations of each D. Maps that result are channels_last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from leanconv.errors import BadInput
from leanconv.ops import depthwise, pointwise
from leanconv.ops.autocast import casts_its_map
from leanconv.ops.depthwise import new_map

Ints = Sequence[int]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def check(
    x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor, bias: Tensor | None, plain: Tensor | None,
    plain_bias: Tensor | None, geometry: Ints,
) -> None:  # fmt: skip
    """Raise BadInput if shapes do not fit."""
    stencils = _given(first, second)
    channels = x.shape[1] if x.dim() == 4 else 0
    of_plain = 0 if plain is None or plain.dim() != 2 else plain.shape[1]
    if x.dim() != 4 or matrix.dim() != 2 or matrix.shape[1] + of_plain != channels or (plain is None) == bool(of_plain):
        matrices = [list(each.shape) for each in _given(matrix, plain)]
        raise BadInput(
            f"branches take a map N C H W and matrices whose inputs are its channels, got {list(x.shape)}, {matrices}"
        )
    for vector in _given(bias, plain_bias):
        if list(vector.shape) != [matrix.shape[0]]:
            raise BadInput(f"branches of {matrix.shape[0]} outputs take as many biases, got {list(vector.shape)}")
    if plain is not None and plain.shape[0] != matrix.shape[0]:
        raise BadInput(f"both branches have the same outputs, got {matrix.shape[0]} and {plain.shape[0]}")
    if first is None and second is not None:
        raise BadInput("a branch of one depthwise convolution takes it as its first")
    if len(geometry) != 4 * len(stencils):
        raise BadInput(f"{len(stencils)} depthwise convolutions take four sizes each, got {list(geometry)}")
    for at, weight in enumerate(stencils):
        top, left, *dilation = geometry[4 * at : 4 * at + 4]
        if weight.dim() != 4 or list(weight.shape[:2]) != [matrix.shape[1], 1] or min(dilation) < 1:
            raise BadInput(
                f"a branch of {matrix.shape[1]} channels takes weights C 1 R S and dilations of at least 1, got "
                f"{list(weight.shape)} and {dilation}"
            )
        spans = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        if not (0 <= top <= spans[0] and 0 <= left <= spans[1]):
            raise BadInput(f"a branch keeps the map's size: padding of {top}, {left} does not fit spans of {spans}")


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [each for each in tensors if each is not None]


def steps(stencils: Sequence[Tensor], geometry: Ints) -> list[tuple[list[int], list[int], list[int]]]:
    """Stride, padding (top, bottom, left, right) and dilation of each depthwise convolution."""
    found = []
    for at, weight in enumerate(stencils):
        top, left, *dilation = geometry[4 * at : 4 * at + 4]
        high, wide = (d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True))
        found.append(([1, 1], [top, high - top, left, wide - left], dilation))
    return found


def result(
    x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor, bias: Tensor | None, plain: Tensor | None,
    plain_bias: Tensor | None, geometry: Ints,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """a and b, `N O H W`: the reference. Raises: BadInput if shapes do not fit."""
    check(x, first, second, matrix, bias, plain, plain_bias, geometry)
    return _composed(x, first, second, matrix, bias, plain, plain_bias, geometry, depthwise.result, pointwise.result)


def _composed(
    x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor, bias: Tensor | None, plain: Tensor | None,
    plain_bias: Tensor | None, geometry: Ints, stencil: Any, product: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    large, stencils = x[:, : matrix.shape[1]], _given(first, second)
    for weight, own in zip(stencils, steps(stencils, geometry), strict=True):
        large = stencil(large, weight, None, *own)
    b = x.new_empty(0) if plain is None else product(x[:, matrix.shape[1] :], plain, plain_bias)
    return product(large, matrix, bias), b


def gradient(
    grad: Tensor, plain_grad: Tensor | None, x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor,
    plain: Tensor | None, geometry: Ints, of_x: bool,
) -> Gradients:  # fmt: skip
    """Those of x (if asked for), first, second, matrix, bias, plain and plain_bias: the reference.

    Sums are in float32 where the maps have a half type. What is not there has a gradient of no numbers.
    """
    stencils = _given(first, second)
    own, maps = steps(stencils, geometry), [x[:, : matrix.shape[1]]]
    for weight, sizes in zip(stencils, own, strict=True):
        maps.append(depthwise.result(maps[-1], weight, None, *sizes))
    sums = [*pointwise.gradients(grad, maps.pop())]
    to = pointwise.result(grad, matrix.t(), None)
    for weight, sizes in zip(stencils[::-1], own[::-1], strict=True):
        before = maps.pop()
        sums.insert(0, depthwise.kernel_gradient(to, before, weight.shape[2:], *sizes)[0])
        to = depthwise.data_gradient(to, weight, before.shape, *sizes)
    sums[len(stencils) : len(stencils)] = [_none(x) for _ in range(2 - len(stencils))]
    if plain is None or plain_grad is None:
        return _in_seven(to if of_x else x.new_empty(0), *sums, _none(x), _none(x))
    sums += pointwise.gradients(plain_grad, x[:, matrix.shape[1] :])
    found = torch.cat([to, pointwise.result(plain_grad, plain.t(), None)], 1) if of_x else x.new_empty(0)
    return _in_seven(found.contiguous(memory_format=torch.channels_last) if of_x else found, *sums)


def _none(x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=_exact(x))


def _in_seven(*tensors: Tensor) -> Gradients:
    return tensors  # type: ignore[return-value]


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


separable_branches = torch.library.custom_op("leanconv::separable_branches", result, mutates_args=())
separable_branches_gradient = torch.library.custom_op(
    "leanconv::separable_branches_gradient", gradient, mutates_args=()
)


@separable_branches.register_fake
def _(
    x: Tensor, first: Any, second: Any, matrix: Tensor, bias: Any, plain: Any, plain_bias: Any, geometry: Ints
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check(x, first, second, matrix, bias, plain, plain_bias, geometry)
    size = [x.shape[0], matrix.shape[0], *x.shape[2:]]
    return new_map(x, size), x.new_empty(0) if plain is None else new_map(x, size)


@separable_branches_gradient.register_fake
def _(
    grad: Tensor, plain_grad: Any, x: Tensor, first: Any, second: Any, matrix: Tensor, plain: Any, geometry: Ints,
    of_x: bool,
) -> Gradients:  # fmt: skip
    return _in_seven(new_map(x, x.shape) if of_x else x.new_empty(0), *new_sums(x, first, second, matrix, plain))


def new_sums(
    x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor, plain: Tensor | None
) -> list[Tensor]:
    """Uninitialised gradients of the weights, in order; of no numbers where there is no weight."""
    sizes: list[Ints] = [(0,) if each is None else each.shape for each in (first, second)]
    for each in (matrix, plain):
        sizes += [(0,), (0,)] if each is None else [each.shape, each.shape[:1]]
    return [torch.empty(tuple(size), dtype=_exact(x), device=x.device) for size in sizes]


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the map and the weights."""
    ctx.save_for_backward(*inputs[:7])
    ctx.geometry = inputs[7]
    if inputs[5] is None:
        ctx.mark_non_differentiable(output[1])


def backward(ctx: Any, grad: Tensor, plain_grad: Any, every: Any = separable_branches_gradient) -> tuple[Any, ...]:
    """The gradient of `separable_branches`; `every`: what computes it."""
    inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[:7]
    if torch.is_grad_enabled():  # it is to have a gradient itself
        return *_differentiable(inputs, wanted, ctx.geometry, grad, plain_grad), None
    return of_inputs(grad, plain_grad, (*inputs, ctx.geometry), wanted, every)


def of_inputs(
    grad: Tensor, plain_grad: Any, inputs: tuple[Any, ...], wanted: Sequence[bool], every: Any
) -> tuple[Any, ...]:
    """The gradients of the inputs that want one, of their types; None for the others."""
    *tensors, geometry = inputs
    x, first, second, matrix, _, plain, _ = tensors
    of_plain = None if plain is None else plain_grad
    found = every(grad, of_plain, x, first, second, matrix, plain, geometry, wanted[0])
    return *(
        each.to(given.dtype) if need else None for each, given, need in zip(found, tensors, wanted, strict=True)
    ), None  # fmt: skip


def _differentiable(inputs: Any, wanted: Any, geometry: Ints, grad: Tensor, plain_grad: Any) -> list[Any]:
    """The gradients of the tensors by operators that have gradients of their own."""
    given: tuple[Any, ...] = (*inputs, geometry, depthwise.depthwise_conv2d, pointwise.pointwise_conv2d)
    outputs = _composed(*given)
    roots, slopes = (outputs[:1], [grad]) if inputs[5] is None else (outputs, [grad, plain_grad])
    leaves = [each for each, need in zip(inputs, wanted, strict=True) if need]
    found = iter(torch.autograd.grad(roots, leaves, slopes, create_graph=True))
    return [next(found) if need else None for need in wanted]


separable_branches.register_autograd(backward, setup_context=save)


def _flops(x: Ints, first: Any, second: Any, matrix: Ints, plain: Any) -> int:
    taps = sum(each[0] * each[2] * each[3] for each in (first, second) if each is not None)
    weights = sum(each[0] * each[1] for each in (matrix, plain) if each is not None)
    return 2 * x[0] * x[2] * x[3] * (taps + weights)


@register_flop_formula(torch.ops.leanconv.separable_branches)
def _(x: Any, first: Any, second: Any, matrix: Any, bias: Any, plain: Any, *rest: Any, **named: Any) -> int:
    return _flops(x, first, second, matrix, plain)


@register_flop_formula(torch.ops.leanconv.separable_branches_gradient)
def _(
    grad: Any, plain_grad: Any, x: Any, first: Any, second: Any, matrix: Any, plain: Any, geometry: Any, of_x: bool,
    **named: Any,
) -> int:  # fmt: skip
    return (1 + of_x) * _flops(x, first, second, matrix, plain)


casts_its_map(separable_branches)
