"""Layers of the cheap operators as the fused engine has them: primitives with their weights, launched as in a plan."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.kernels import backend
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.bound.base import PreparedKernel
from leanconv.ops.exact import exact_mean
from leanconv.ops.forms import Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable


class Fused(NamedTuple):
    """A layer as the engine has it.

    Args:
        form, weights: its primitive, which reads the layer's input, or the first channels of it.
        residual: whether the input is added, too.
        blend: of SPConv and SPLConv the second primitive, which reads the other channels.
    """

    form: Separable | Grouped
    weights: list[Tensor]
    residual: bool = False
    blend: tuple[GatedSum, list[Tensor]] | None = None


def launched(layer: Fused, x: Tensor) -> tuple[Callable[[], Tensor], set[str]]:
    """The call on `x` as a plan makes it, which gives its result; the methods of its kernels."""
    own = x[:, : sum(layer.form.channels)]
    maps = [own, x if layer.residual else None, *[None] * isinstance(layer.form, Separable)]
    first = _prepared(bind(layer.form, layer.weights).prepare(*maps))
    y, means = _result(first), torch.empty(first.size[:2])
    run = _batch(first, [*[each for each in maps if each is not None], y, *[means] * first.average])
    if layer.blend is None:

        def alone() -> Tensor:
            run()
            return y

        return alone, {first.method}
    rest, bound = x[:, own.shape[1] :], bind(*layer.blend)
    in_place = bound.prepare_in_place(y, rest)
    second = in_place or _prepared(bound.prepare(y, rest))
    z, average = y if in_place else _result(second), torch.empty(x.shape[0], rest.shape[1], 1, 1)
    blend = _batch(second, [y, rest, z], [means, average])

    def call() -> Tensor:
        run()
        average.copy_(exact_mean(rest, keepdim=True))
        blend()
        return z

    return call, {first.method, second.method}


def _prepared(kernel: PreparedKernel | None) -> PreparedKernel:
    if kernel is None:
        raise RuntimeError("no kernels here: see `leanconv doctor`")
    return kernel


def _result(kernel: PreparedKernel) -> Tensor:
    size = math.prod(kernel.size) * kernel.dtype.itemsize
    return backend().allocate(size, huge=True)[:size].view(kernel.dtype).as_strided(kernel.size, kernel.strides)


def _batch(kernel: PreparedKernel, operands: list[Tensor], averages: Sequence[Tensor] = ()) -> Callable[[], None]:
    launch = kernel.launch(averages)
    for index, tensor in enumerate(operands):
        launch.put(index, tensor)
    batch = backend().batch([launch])

    def call(_kept: list[Tensor] = operands) -> None:  # a launch holds addresses alone
        batch()

    return call


def _around(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    h, w = conv.padding  # type: ignore[misc]
    return h, h, w, w  # type: ignore[return-value]


def _stencil(conv: nn.Conv2d, first: int = 0, activation: str = "none") -> Stencil:
    return Stencil(
        first,
        conv.in_channels,
        conv.kernel_size,
        conv.stride,
        conv.dilation,
        _around(conv),
        conv.bias is not None,
        activation=activation,
    )


def _weights(*convs: nn.Conv2d) -> list[Tensor]:
    return [p for conv in convs for p in (conv.weight, conv.bias) if p is not None]


def _separable(layer: Any) -> Fused:
    biased = layer.pointwise.bias is not None
    form = Separable((layer.in_channels,), ((_stencil(layer.spatial),),), layer.out_channels, biased, "relu")
    return Fused(form, _weights(layer.spatial, layer.pointwise))


def _sic(layer: Any) -> Fused:
    pair, adds = layer.pairs[0], layer._adds[0]
    form = Separable(
        (layer.in_channels,),
        ((_stencil(pair.spatial),),),
        layer.out_channels,
        pair.pointwise.bias is not None,
        "relu",
        residual=adds,
    )
    return Fused(form, _weights(pair.spatial, pair.pointwise), residual=adds)


def _group_pointwise(layer: Any) -> Fused:
    conv, project = layer.spatial, layer.pointwise
    form = Grouped(
        (layer.in_channels,),
        conv.out_channels,
        conv.kernel_size,
        padding=_around(conv),
        groups=conv.groups,
        project=layer.out_channels,
        project_bias=project.bias is not None,
        activation="relu",
    )
    return Fused(form, _weights(conv, project))


def _hetconv(layer: Any, activation: str = "relu", average: bool = False) -> Fused:
    interleaved, h, w = layer.arrangement == "shifted" and layer.part > 1, *layer.padding
    spatial = (
        layer.spatial.unflatten(0, (-1, layer.part)).transpose(0, 1).flatten(0, 1) if interleaved else layer.spatial
    )
    weights = [spatial, layer._full_pointwise(layer.pointwise)] + ([] if layer.bias is None else [layer.bias])
    form = Grouped(
        (layer.in_channels,),
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.dilation,
        (h, h, w, w),
        layer.part,
        interleaved,
        True,
        layer.bias is not None,
        activation=activation,
        average=average,
    )
    return Fused(form, weights)


def _blended(layer: Any, first: Fused) -> Fused:
    """With the second pass."""
    plain = layer.plain
    form = GatedSum((layer.split[1],), plain.out_channels, plain.bias is not None, activation="relu")
    return first._replace(blend=(form, _weights(plain)))


def _spconv(layer: Any) -> Fused:
    return _blended(layer, _hetconv(layer.representative, "none", True))


def _splconv(layer: Any) -> Fused:
    first, second, project = layer.stencil1, layer.stencil2, layer.pointwise
    form = Separable(
        (layer.split[0],),
        ((_stencil(first),), (_stencil(second),)),
        project.out_channels,
        project.bias is not None,
        "relu",
        average=True,
    )
    return _blended(layer, Fused(form, _weights(first, second, project)))


def _xsepconv(layer: Any) -> Fused:
    c = layer.in_channels
    square = Stencil(0, c, (2, 2), padding=(0, 1, 0, 1), bias=layer.square.bias is not None, activation="relu")
    stages = ((square,), (_stencil(layer.row, activation="relu"),), (_stencil(layer.column),))
    return Fused(Separable((c,), stages, activation="relu"), _weights(layer.square, layer.row, layer.column))


def _inception(layer: Any) -> Fused:
    same, g, *_ = layer.split
    convs = (layer.dwconv_hw, layer.dwconv_w, layer.dwconv_h)
    stage = (Stencil(0, same, identity=True), *(_stencil(conv, same + i * g) for i, conv in enumerate(convs)))
    return Fused(Separable((layer.in_channels,), (stage,), activation="relu"), _weights(*convs))


def _fuseconv(layer: Any) -> Fused:
    second = 0 if layer.variant == "full" else layer.width
    convs, project = (layer.row, layer.column), layer.pointwise
    stage = (_stencil(layer.row), _stencil(layer.column, second))
    out = None if project is None else project.out_channels
    bias = project is not None and project.bias is not None
    weights = _weights(*convs, *(() if project is None else (project,)))
    return Fused(Separable((layer.in_channels,), (stage,), out, bias, "relu"), weights)


FUSED: dict[str, Callable[[Any], Fused]] = {
    "depthwise_separable": _separable, "group_pointwise": _group_pointwise, "spconv": _spconv, "splconv": _splconv,
    "hetconv": _hetconv, "sic": _sic, "xsepconv": _xsepconv, "inception_dw": _inception, "fuseconv": _fuseconv,
}  # fmt: skip
