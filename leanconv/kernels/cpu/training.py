"""The CPU's kernels for the operators that train: each takes what it can, and leaves the rest to the reference."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.runtime import batch_norm_act as norm_kernels
from leanconv.kernels.cpu.runtime import depthwise as kernels
from leanconv.kernels.cpu.runtime import gated_sum as blends
from leanconv.kernels.cpu.runtime import hetconv as het_kernels
from leanconv.kernels.cpu.runtime import normalized_gated_sum as normalized_blends
from leanconv.kernels.cpu.runtime import pointwise as pointwise_kernels
from leanconv.kernels.cpu.runtime import separable_branch as branch_kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.ops import batch_norm_act as norm_act_ops
from leanconv.ops import depthwise as ops
from leanconv.ops import gated_sum_training as blend_ops
from leanconv.ops import hetconv as het_ops
from leanconv.ops import hetconv_branches as het_branch_ops
from leanconv.ops import normalized_gated_sum as norm_ops
from leanconv.ops import pointwise as pointwise_ops
from leanconv.ops import separable_branches as branch_ops

Ints = Sequence[int]
Floats = Sequence[float]
TYPES = (torch.float32, torch.bfloat16)


def why_not() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    return None if runtime() is not None else build.why_no("training")


def _takes(*maps: Tensor, weights: Sequence[Tensor | None] = ()) -> bool:
    """Whether the kernels run here and take these maps and weights."""
    kind = maps[0].dtype
    return (
        kind in TYPES
        and all(x.dtype == kind and x.dim() == 4 and x.shape[1] for x in maps)
        and all(w is None or w.dtype in (kind, torch.float32) for w in weights)
        and why_not() is None
    )


def _packed(weight: Tensor) -> Tensor:
    return weight.float().contiguous()


def _sums(like: Tensor, *size: int) -> Tensor:
    """Uninitialised float32, whatever PyTorch's default type and device are."""
    return torch.empty(size, dtype=torch.float32, device=like.device)


@ops.depthwise_conv2d.register_kernel("cpu")
def result(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    ops.check(x, weight, stride, padding, dilation, bias)
    size = ops.output_size(x.shape, weight.shape[2:], stride, padding, dilation)
    if not _takes(x, weights=(weight, bias)) or min(size[2:]) < 1:
        return ops.result(x, weight, bias, stride, padding, dilation)
    y = ops.new_map(x, size)
    geometry = kernels.Geometry(x.shape, size, weight.shape[2:], stride, padding, dilation)
    kernels.forward(readable(x), _packed(weight), None if bias is None else _packed(bias), y, geometry)
    return y


@ops.input_gradient.register_kernel("cpu")
def data_gradient(grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    if not _takes(grad, weights=(weight,)):
        return ops.data_gradient(grad, weight, size, stride, padding, dilation)
    x = ops.new_map(grad, size)
    geometry = kernels.Geometry(size, grad.shape, weight.shape[2:], stride, padding, dilation)
    kernels.input_gradient(readable(grad), _packed(weight), x, geometry)
    return x


@ops.weight_gradient.register_kernel("cpu")
def kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> tuple[Tensor, Tensor]:
    if not _takes(grad, x):
        return ops.kernel_gradient(grad, x, kernel, stride, padding, dilation)
    weight, bias = _sums(x, x.shape[1], 1, *kernel), _sums(x, x.shape[1])
    geometry = kernels.Geometry(x.shape, grad.shape, kernel, stride, padding, dilation)
    kernels.weight_gradient(readable(grad), readable(x), weight, bias, geometry)
    return weight, bias


@blend_ops.gated_sum.register_kernel("cpu")
def blend(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    blend_ops.check(a, b)
    if not _takes(a, b) or not a.numel():
        return blend_ops.result(a, b)
    y, gate = blend_ops.new_map(a), _sums(a, *a.shape[:2])
    blends.forward(readable(a), readable(b), y, gate)
    return y, gate


@blend_ops.gated_sum_gradient.register_kernel("cpu")
def blend_gradient(grad: Tensor, a: Tensor, b: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    if not _takes(grad, a, b) or not a.numel():
        return blend_ops.gradient(grad, a, b, gate)
    found = blend_ops.new_map(grad), blend_ops.new_map(grad)
    blends.gradients(readable(grad), readable(a), readable(b), gate.contiguous(), *found)
    return found


@norm_ops.normalized_gated_sum.register_kernel("cpu")
def normalized_blend(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None, relu: bool,
    eps: Floats,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _blend(a, b, (weight, bias, weight_b, bias_b), relu, eps, in_place=False)


def normalized_blend_(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None, relu: bool,
    eps: Floats,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The same, where nobody needs the maps any more: it may write the result over the first."""
    return _blend(a, b, (weight, bias, weight_b, bias_b), relu, eps, in_place=True)


def _blend(
    a: Tensor, b: Tensor, norms: tuple[Tensor, Tensor, Tensor | None, Tensor | None], relu: bool, eps: Floats, *,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The result, its gates and the norms' statistics."""
    norm_ops.check(a, b, *norms)
    if not _takes(a, b, weights=norms):
        return norm_ops.result(a, b, *norms, relu, eps)
    a, b, gate, statistics = readable(a), readable(b), _sums(a, *a.shape[:2]), _sums(a, 4, a.shape[1])
    y = a if in_place else norm_ops.new_map(a)
    normalized_blends.forward(a, b, _vectors(norms), relu, list(eps), y, gate, statistics)
    return y, gate, statistics


@norm_ops.normalized_gated_sum_gradient.register_kernel("cpu")
def normalized_blend_gradient(
    grad: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None,
    gate: Tensor, statistics: Tensor, relu: bool, eps: Floats,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    norms = weight, bias, weight_b, bias_b
    return _blend_gradients(grad, a, b, norms, gate, statistics, relu, eps, in_place=False)


def normalized_blend_gradient_(
    grad: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None,
    gate: Tensor, statistics: Tensor, relu: bool, eps: Floats,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The same, where nobody needs the maps any more: it may write the gradients over them."""
    norms = weight, bias, weight_b, bias_b
    return _blend_gradients(grad, a, b, norms, gate, statistics, relu, eps, in_place=True)


def _blend_gradients(
    grad: Tensor, a: Tensor, b: Tensor, norms: tuple[Tensor, Tensor, Tensor | None, Tensor | None], gate: Tensor,
    statistics: Tensor, relu: bool, eps: Floats, *, in_place: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the maps, and those of the norms."""
    if not _takes(grad, a, b, weights=norms):
        return norm_ops.gradient(grad, a, b, *norms, gate, statistics, relu, eps)
    sums = _sums(a, 4, a.shape[1])
    grad, a, b, gate, statistics = readable(grad), readable(a), readable(b), gate.contiguous(), statistics.contiguous()
    to_a, to_b = (a, b) if in_place else (norm_ops.new_map(grad), norm_ops.new_map(grad))
    normalized_blends.gradients(grad, a, b, _vectors(norms), gate, statistics, relu, list(eps), to_a, to_b, sums)
    return to_a, to_b, sums


def _vectors(norms: tuple[Tensor | None, ...]) -> normalized_blends.Norms:
    return tuple(_given(*norms))  # type: ignore[return-value]


@norm_act_ops.batch_norm_act.register_kernel("cpu")
def normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: str, eps: float
) -> tuple[Tensor, Tensor]:
    norm_act_ops.check(x, weight, bias, residual, act)
    if not _takes(x, weights=(weight, bias)):
        return norm_act_ops.result(x, weight, bias, residual, act, eps)
    y, statistics = norm_act_ops.new_map(x), _sums(x, 2, x.shape[1])
    residual = None if residual is None else readable(residual)
    scale, shift = _given(weight, bias)
    norm_kernels.forward(readable(x), scale, shift, residual, act, eps, y, statistics)
    return y, statistics


@norm_act_ops.batch_norm_act_gradient.register_kernel("cpu")
def normalized_gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, y: Tensor | None, statistics: Tensor, act: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not _takes(grad, x, weights=(weight, bias)) or (y is not None and y.dtype != x.dtype):
        return norm_act_ops.gradient(grad, x, weight, bias, y, statistics, act, eps)
    found, sums = norm_act_ops.new_map(grad), _sums(x, 2, x.shape[1])
    through = None if y is None else norm_act_ops.new_map(grad)
    y = None if y is None else readable(y)
    (scale, shift), statistics = _given(weight, bias), statistics.contiguous()
    norm_kernels.gradients(readable(grad), readable(x), scale, shift, y, statistics, act, eps, found, through, sums)
    return found, grad.new_empty(0) if through is None else through, sums


def _given(*vectors: Tensor | None) -> list[Tensor | None]:
    return [None if each is None else _packed(each) for each in vectors]


@pointwise_ops.pointwise_conv2d.register_kernel("cpu")
def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    pointwise_ops.check(x, weight, bias)
    if not _takes(x, weights=(weight, bias)) or not x.numel() or not weight.numel():
        return pointwise_ops.result(x, weight, bias)
    y = ops.new_map(x, [x.shape[0], weight.shape[0], *x.shape[2:]])
    pointwise_kernels.forward(readable(x), weight.float(), None if bias is None else _packed(bias), y)
    return y


@pointwise_ops.weight_gradient.register_kernel("cpu")
def pointwise_gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if not _takes(grad, x) or not x.numel():
        return pointwise_ops.gradients(grad, x)
    weight, bias = _sums(x, grad.shape[1], x.shape[1]), _sums(x, grad.shape[1])
    pointwise_kernels.weight_gradient(readable(grad), readable(x), weight, bias)
    return weight, bias


@branch_ops.separable_branches.register_kernel("cpu")
def branches(
    x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor, bias: Tensor | None, plain: Tensor | None,
    plain_bias: Tensor | None, geometry: Ints,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    branch_ops.check(x, first, second, matrix, bias, plain, plain_bias, geometry)
    weights = (first, second, matrix, bias, plain, plain_bias)
    if not _takes(x, weights=weights) or not x.numel() or not matrix.numel():
        return branch_ops.result(x, first, second, matrix, bias, plain, plain_bias, geometry)
    size, c = [x.shape[0], matrix.shape[0], *x.shape[2:]], matrix.shape[1]
    x, a, b = readable(x), ops.new_map(x, size), x.new_empty(0)
    stencils, shift = _kernels(first, second), None if bias is None else _packed(bias)
    branch_kernels.forward(x[:, :c], stencils, _packed(matrix), shift, geometry, a)
    if plain is not None:
        b, shift = ops.new_map(x, size), None if plain_bias is None else _packed(plain_bias)
        branch_kernels.forward(x[:, c:], [], _packed(plain), shift, [], b)
    return a, b


@branch_ops.separable_branches_gradient.register_kernel("cpu")
def branches_gradient(
    grad: Tensor, plain_grad: Tensor | None, x: Tensor, first: Tensor | None, second: Tensor | None, matrix: Tensor,
    plain: Tensor | None, geometry: Ints, of_x: bool,
) -> branch_ops.Gradients:  # fmt: skip
    maps = (x, grad) if plain_grad is None else (x, grad, plain_grad)
    if not _takes(*maps, weights=(first, second, matrix, plain)) or not x.numel() or not matrix.numel():
        return branch_ops.gradient(grad, plain_grad, x, first, second, matrix, plain, geometry, of_x)
    stencils, c = _kernels(first, second), matrix.shape[1]
    x, found = readable(x), ops.new_map(x, x.shape) if of_x else x.new_empty(0)
    sums = branch_ops.new_sums(x, first, second, matrix, plain)
    own = [*sums[: len(stencils)], *sums[2:4]]
    to = (found[:, :c], found[:, c:]) if of_x else (None, None)
    branch_kernels.gradients(readable(grad), x[:, :c], stencils, _packed(matrix), geometry, to[0], own)
    if plain is not None and plain_grad is not None:
        branch_kernels.gradients(readable(plain_grad), x[:, c:], [], _packed(plain), [], to[1], sums[4:])
    return found, *sums  # type: ignore[return-value]


@het_ops.hetconv2d.register_kernel("cpu")
def hetconv(
    x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints,
    blocked: bool = False,
) -> Tensor:  # fmt: skip
    het_ops.check(x, spatial, pointwise, bias, stride, padding, dilation)
    groups = _groups(x, spatial, pointwise, blocked)
    if groups.part not in het_kernels.PARTS or not _takes(x, weights=(spatial, pointwise, bias)) or not x.numel():
        return het_ops.result(x, spatial, pointwise, bias, stride, padding, dilation, blocked)
    y = ops.new_map(x, het_ops.output_size(x.shape, spatial.shape, stride, padding, dilation))
    weights = _packed(spatial), _packed(pointwise), None if bias is None else _packed(bias)
    het_kernels.forward(readable(x), *weights, groups, _het_geometry(spatial, stride, padding, dilation), y)
    return y


@het_ops.hetconv2d_gradient.register_kernel("cpu")
def hetconv_gradient(
    grad: Tensor, x: Tensor, spatial: Tensor, pointwise: Tensor, stride: Ints, padding: Ints, dilation: Ints,
    of_x: bool, blocked: bool = False,
) -> het_ops.Gradients:  # fmt: skip
    groups = _groups(x, spatial, pointwise, blocked)
    if groups.part not in het_kernels.PARTS or not _takes(x, grad, weights=(spatial, pointwise)) or not x.numel():
        return het_ops.gradient(grad, x, spatial, pointwise, stride, padding, dilation, of_x, blocked)
    grad, x, geometry = readable(grad), readable(x), _het_geometry(spatial, stride, padding, dilation)
    found, sums = x.new_empty(0), het_ops.new_sums(x, spatial, pointwise)
    if of_x:
        found = ops.new_map(x, x.shape)
        het_kernels.data_gradient(grad, _packed(spatial), _packed(pointwise), groups, geometry, found)
    het_kernels.weight_gradient(grad, x, groups, geometry, sums)
    return found, *sums  # type: ignore[return-value]


@het_branch_ops.hetconv_branches.register_kernel("cpu")
def het_branches(
    x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, plain_bias: Tensor | None, geometry: Ints
) -> tuple[Tensor, Tensor]:
    het_branch_ops.check(x, spatial, matrix, plain, plain_bias, geometry)
    c, centre = matrix.shape[1], het_branch_ops.centre(spatial, matrix, geometry)
    groups = _groups(x[:, :c], spatial, centre, True)
    weights = (spatial, matrix, plain, plain_bias)
    if groups.part not in het_kernels.PARTS or not _takes(x, weights=weights) or not x.numel():
        return het_branch_ops.result(x, spatial, matrix, plain, plain_bias, geometry)
    size, x = het_branch_ops.output_size(x, spatial, geometry), readable(x)
    a, b = ops.new_map(x, size), ops.new_map(x, size)
    z = readable(het_branch_ops.averages(x, geometry))
    own = _het_geometry(spatial, *het_branch_ops.steps(spatial, geometry))
    het_kernels.forward(x[:, :c], _packed(spatial), _packed(centre), None, groups, own, a)
    if het_branch_ops.is_strided(geometry):
        _product(z[:, :c], matrix, None, b)
        a.add_(b)
    _product(z[:, c:], plain, None if plain_bias is None else _packed(plain_bias), b)
    return a, b


@het_branch_ops.hetconv_branches_gradient.register_kernel("cpu")
def het_branches_gradient(
    grad: Tensor, plain_grad: Tensor, x: Tensor, spatial: Tensor, matrix: Tensor, plain: Tensor, geometry: Ints,
    of_x: bool,
) -> het_branch_ops.Gradients:  # fmt: skip
    c, centre = matrix.shape[1], het_branch_ops.centre(spatial, matrix, geometry)
    groups = _groups(x[:, :c], spatial, centre, True)
    maps, weights = (x, grad, plain_grad), (spatial, matrix, plain)
    if groups.part not in het_kernels.PARTS or not _takes(*maps, weights=weights) or not x.numel():
        return het_branch_ops.gradient(grad, plain_grad, x, spatial, matrix, plain, geometry, of_x)
    x, grad, plain_grad = readable(x), readable(grad), readable(plain_grad)
    own, strided = _het_geometry(spatial, *het_branch_ops.steps(spatial, geometry)), het_branch_ops.is_strided(geometry)
    found, sums = x.new_empty(0), het_branch_ops.new_sums(x, spatial, matrix, plain)
    z = readable(het_branch_ops.averages(x, geometry))
    of_centre = _sums(x, *centre.shape) if strided else sums[1]
    het_kernels.weight_gradient(grad, x[:, :c], groups, own, [sums[0], of_centre, None])
    if strided:
        _product_weight_gradient(grad, z[:, :c], [sums[1], _sums(x, matrix.shape[0])])
    _product_weight_gradient(plain_grad, z[:, c:], sums[2:])
    if of_x:
        found = to_z = ops.new_map(x, z.shape)
        _product_data_gradient(plain_grad, plain, to_z[:, c:])
        if strided:
            _product_data_gradient(grad, matrix, to_z[:, :c])
            found = ops.new_map(x, x.shape).zero_()
        het_kernels.data_gradient(grad, _packed(spatial), _packed(centre), groups, own, found[:, :c])
        if strided:
            found.add_(het_branch_ops.of_averages(to_z, x, geometry))
    return found, *sums  # type: ignore[return-value]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Fill `y`: a 1×1."""
    if _is_product(x, weight.shape):
        het_kernels.forward(x, None, _packed(weight), bias, *_PRODUCT, y)
    else:
        pointwise_kernels.forward(x, weight.float(), bias, y)


def _product_data_gradient(grad: Tensor, weight: Tensor, x_grad: Tensor) -> None:
    if _is_product(grad, weight.shape):
        het_kernels.data_gradient(grad, None, _packed(weight), *_PRODUCT, x_grad)
    else:
        pointwise_kernels.forward(grad, weight.float().t(), None, x_grad)


def _product_weight_gradient(grad: Tensor, x: Tensor, sums: list[Tensor]) -> None:
    """Fill the sums of the 1×1 and of its bias."""
    if _is_product(x, (grad.shape[1], x.shape[1])):
        het_kernels.weight_gradient(grad, x, *_PRODUCT, [None, *sums])
    else:
        pointwise_kernels.weight_gradient(grad, x, *sums)


# A 1×1 as the HetConv kernel has it.
_PRODUCT = het_kernels.Groups(2, full=True), het_kernels.Geometry((1, 1), (1, 1), (0, 0), (1, 1))


def _is_product(x: Tensor, channels: Ints) -> bool:
    """Whether it takes a 1×1 of these channels. It multiplies pairs of bfloat16; else the other kernel is faster.

    Half of 8 channels, to 8, at 128 px and batch 16, one core of an EPYC (AVX512-BF16), result and gradients: bfloat16
    2.4 ms against 3.5, float32 3.7 ms against 1.4.
    """
    return x.dtype == torch.bfloat16 and this_cpu().bf16 and all(count % 2 == 0 for count in channels)


def _groups(x: Tensor, spatial: Tensor, pointwise: Tensor, blocked: bool) -> het_kernels.Groups:
    return het_kernels.Groups(x.shape[1] // spatial.shape[1], blocked, pointwise.shape[1] == x.shape[1])


def _het_geometry(spatial: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> het_kernels.Geometry:
    return het_kernels.Geometry(spatial.shape[2:], stride, padding, dilation)  # type: ignore[arg-type]


def _kernels(*weights: Tensor | None) -> list[Tensor]:
    return [_packed(each) for each in weights if each is not None]
