"""Primitives of bfloat16 maps whose products run on tiles, in C (`runtime/tiles_*.c`): AMX, or vectors of AVX512-BF16.

The stencils stay Halide's. They write a block's rows into scratch, and the product on tiles reads them there, in the
cache. A dense convolution is one product for each row of taps over a copy of the block's rows with zeros around them.
Float32 maps, and forms that are not covered, use the kernels of `bound/`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import Bound, PreparedKernel
from leanconv.kernels.cpu.bound.gated_sum import BoundGatedSum, PreparedGatedSum
from leanconv.kernels.cpu.bound.grouped import BoundGrouped
from leanconv.kernels.cpu.bound.resample import BoundUpsample
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.bound.separable_builder import KernelBuilder
from leanconv.kernels.cpu.bound.tile_products import Product, gathers, scratch_stride
from leanconv.kernels.cpu.bound.views import (
    average_of,
    flat_out_view,
    flat_view,
    map_view,
    out_view,
    planes_view,
    vector_view,
    weights_view,
)
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines import separable
from leanconv.kernels.cpu.pipelines.element import BFLOAT16_PAIRS
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.runtime import tiles
from leanconv.kernels.cpu.runtime.block_loop import Average, BlockLoop, View, Work
from leanconv.kernels.cpu.runtime.tensors import in_planes
from leanconv.kernels.cpu.tuning.cost_model import lanes_for, row_block, summed_rows, whole_units
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import Form
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

_BYTES = 2  # of a number
# Weights up to which groups are put together as a dense convolution. One core of a Xeon, bfloat16, ms on tiles, as
# groups in vectors, and as oneDNN's groups: 128 channels in 32 groups at 28×28 .14, .26 and .16; 512 in 4 at 7×7 .26,
# .43 and .27; 512 in 16 at 14×14 .61, .52 and .21; 1,024 in 32 at 7×7 1.0, .25 and .23.
_MOST_DENSE = 512 * 512 * 9


def why_not(form: Form, target: Target) -> str:
    """Why a form has no product on tiles; "" if it has one."""
    if not tiles.arithmetic(target.cpu):
        return "the processor multiplies no pairs of bfloat16, or there is no C compiler"
    if type(form) not in TILED:
        return "it multiplies nothing"
    assert isinstance(form, Separable | Grouped | GatedSum | Upsample)
    if form.activation not in tiles.ACTIVATIONS:
        return f"no {form.activation} behind the tiles"
    match form:
        case Separable(out_channels=None):
            return "it has no 1×1"
        case Separable(gate=True):
            return "a gate in front of the 1×1"
        case Grouped() if form.project is not None:
            return "a 1×1 behind a convolution"
        case Grouped() if target.arithmetic == "direct" and (form.groups > 1 or form.pointwise):
            return "groups, which stay as they are in direct arithmetic"
        case Grouped() if form.groups > 1 and _dense_weights(form) > _MOST_DENSE:
            return f"{form.groups} groups, which are {_dense_weights(form)} weights as a dense convolution"
        case Grouped() if form.kernel[0] * (1 if form.dilation[1] == 1 else form.kernel[1]) > tiles.MOST_OPERANDS:
            return f"a kernel of {form.kernel}"
    return ""


def _dense_weights(form: Grouped) -> int:
    return sum(form.channels) * form.out_channels * form.kernel[0] * form.kernel[1]


def _plain(maps: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in maps if x is not None]


def _of_bfloat16(maps: Sequence[Tensor | None]) -> bool:
    return all(x.dtype == torch.bfloat16 for x in _plain(maps))


class TiledSeparable(BoundSeparable):
    """`BoundSeparable`, its 1×1 on tiles."""

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        *inputs, residual, _ = maps
        if not _of_bfloat16((*inputs, residual)):
            return super()._prepare(*maps)
        given = _plain(inputs)
        n, _, h, w = given[0].shape
        size = (n, self.form.width, *self.form.size(h, w))
        made = KernelBuilder(self, self.parts, given, residual, None, size)
        return self._pointwise(made) if self._flat else self._projected(made)

    def _pointwise(self, builder: KernelBuilder) -> PreparedKernel:
        """All pixels in a row, read where they lie unless their channels make no whole tiles."""
        form, (n, o, p, q), product = self.form, builder.size, Product(self.cpu, builder.add)
        assert self.parts.project is not None
        chains = self.parts.chains
        views = [flat_view(x.index, builder.inputs[x.index], x.first, x.channels) for x in chains]
        product.pixels(views, self.parts.project.split([x.channels for x in chains], 1))
        kept = _BYTES * (form.middle + o * form.average)
        least = whole_units(summed_rows(p) * q, product.block) if form.average else product.block
        block = row_block(self.cpu, p * q, n, kept, 0, torch.get_num_threads(), least)
        return self._finished(builder, product, [], Work(n, p * q, block), flat=True)

    def _projected(self, builder: KernelBuilder) -> PreparedKernel:
        """The stencils of a block of rows into scratch, then the 1×1 of its pixels."""
        form, (_, _, p, q), work = self.form, builder.size, builder.row_work(torch.get_num_threads())
        assert self.parts.project is not None
        product, pixel = Product(self.cpu, builder.add, q), scratch_stride(form.middle)
        kernels = []
        for chain, taps, column in zip(self.parts.chains, self.parts.taps, builder.columns(), strict=True):
            track, lanes = builder.track(chain), lanes_for(self.cpu, chain.channels)
            core = separable.SeparableCore((track,), None, pixel, False, "none", 0, False, builder.element)
            made = kernel(separable.depthwise, core, Tile(track.tiles[-1], lanes, lanes))
            rows = _scratch(chain.channels, column, pixel, p, q)
            kernels.append((made, [builder.input(chain), *map(builder.add, taps), rows]))
        product.pixels([_scratch(form.middle, 0, pixel, p, q)], [self.parts.project])
        room = _BYTES * work.block * q * pixel + 64
        return self._finished(builder, product, kernels, work, flat=False, scratch=room)

    def _finished(
        self,
        builder: KernelBuilder,
        product: Product,
        before: list[tuple[tuple[int, Any], list[View]]],
        work: Work,
        flat: bool,
        scratch: int = 0,
    ) -> PreparedKernel:
        """With the epilogue: the kernels of a block, the product last."""
        o, at = self.form.width, builder.at_residual
        product.bias(self.parts.bias, o)
        if builder.residual is not None:
            product.residual((flat_view if flat else map_view)(at, builder.residual, 0, o))
        weights, maps = builder.weights, builder.pointers
        return _prepared(builder.size, self.form, product, before, work, weights, maps, flat, scratch)


def _scratch(channels: int, first: int, pixel: int, p: int, q: int) -> View:
    """Channels of the rows in scratch, `c x y`."""
    dims = ((channels, 1), (q, pixel), (p, q * pixel))
    return View(0, dims, first, 0, True, torch.bfloat16, scratch=True)


def _prepared(
    size: tuple[int, int, int, int],
    form: Separable | Grouped | GatedSum,
    product: Product,
    before: list[tuple[tuple[int, Any], list[View]]],
    work: Work,
    weights: list[Tensor],
    maps: int,
    flat: bool,
    scratch: int = 0,
) -> PreparedKernel:
    """A block's kernels and then its product, which makes the result. Pointers: maps, weights, result, average."""

    product.close(size[1], form.activation)
    at = maps + len(weights)
    out = flat_out_view(at, size, BFLOAT16_PAIRS) if flat else out_view(at, size, 0, size[1], BFLOAT16_PAIRS)
    average = average_of(at, at + 1, size, BFLOAT16_PAIRS, summed_rows(size[2]), flat) if form.average else None
    loop = BlockLoop([*before, product.frame(out)], work, average, scratch=scratch)
    return PreparedKernel(loop, weights, size, form.average, torch.bfloat16)


class _Weights(list[Tensor]):
    """Packed weights whose pointers follow those of the maps."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self._maps = maps

    def add(self, packed: Tensor) -> View:
        self.append(packed)
        return weights_view(self._maps + len(self) - 1, packed)


class TiledGrouped(BoundGrouped):
    """`BoundGrouped` without groups, on tiles: a product for each row of taps."""

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        *given, residual = maps
        if not _of_bfloat16(maps):
            return super()._prepare(*maps)
        inputs, form = _plain(given), self.form
        n, _, h, w = inputs[0].shape
        p, q = form.size(h, w)
        size, planes = (n, form.width, p, q), self.planes and in_planes(inputs[0])
        weights = _Weights(len(_plain(maps)))
        product = Product(self.cpu, weights.add, q)
        views = [planes_view(0, inputs[0])] if planes else [map_view(i, x, 0, x.shape[1]) for i, x in enumerate(inputs)]
        c, (r, s) = sum(form.channels), form.kernel
        product.taps(views, form, self._taps.view(form.width, c, r, s), w, planes)
        product.bias(self._bias, form.width)
        if residual is not None:
            product.residual(map_view(len(inputs), residual, 0, form.width))
        row = _BYTES * (form.width * q + max(c, gathers(form)) * form.stride[0] * w)
        least = summed_rows(p) if form.average else 1
        block = row_block(self.cpu, p, n, row, (r - 1) * form.dilation[0], torch.get_num_threads(), least)
        return _prepared(size, form, product, [], Work(n, p, block), weights, len(_plain(maps)), False)


class TiledUpsample(BoundUpsample):
    """`BoundUpsample` on tiles: a product for each row of the factor."""

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        if not _of_bfloat16(maps):
            return super()._prepare(*maps)
        inputs, form = _plain(maps), self.form
        n, _, h, w = inputs[0].shape
        k, o = form.factor, form.out_channels
        size, width, line = (n, o, h * k, w * k), k * o, k * w * o
        weights, frames = _Weights(len(inputs)), []
        products = [Product(self.cpu, weights.add, w) for _ in self._rows]
        for row, product in zip(self._rows, products, strict=True):
            views = [map_view(i, x, 0, x.shape[1]) for i, x in enumerate(inputs)]
            product.pixels(views, row.split(list(form.channels), 1))
            product.bias(self._bias, width)
            product.close(width, form.activation)
        at = len(inputs) + len(weights)
        for i, product in enumerate(products):
            target = View(at, ((width, 1), (w, width), (h, k * line)), i * line, h * k * line, True, torch.bfloat16)
            frames.append(product.frame(target))
        row_bytes = _BYTES * w * (sum(form.channels) + k * width)
        unit = summed_rows(h) if form.average else 1
        block = row_block(self.cpu, h, n, row_bytes, 0, torch.get_num_threads(), unit)
        average = None
        if form.average:  # a row of the work is k rows of the output
            average = Average(at, at + 1, o, k * line // o, h * k * line, unit, torch.bfloat16)
        loop = BlockLoop(frames, Work(n, h, block), average)
        return PreparedKernel(loop, weights, size, form.average, torch.bfloat16)


class TiledGatedSum(BoundGatedSum):
    """`BoundGatedSum` on tiles. Each pixel is computed once, so the result may always lie where a does."""

    def _with_tile(self, maps: Sequence[Tensor], whole: bool) -> PreparedGatedSum | None:
        if not _of_bfloat16(maps):
            return super()._with_tile(maps, whole)
        a, *inputs = maps
        form, (n, o, h, w) = self.form, a.shape
        size, gates = (n, o, h, w), 1 + len(inputs)
        weights = _Weights(gates + 1)
        product = Product(self.cpu, weights.add)
        views = [flat_view(1 + i, x, 0, x.shape[1]) for i, x in enumerate(inputs)]
        product.pixels(views, self._weight.split(list(form.channels), 1))
        product.bias(None, o)  # the third factor has it
        product.blend(flat_view(0, a, 0, o), [vector_view(gates, o, part * o, 3 * o) for part in range(3)])
        row = _BYTES * (sum(form.channels) + 2 * o)
        least = whole_units(summed_rows(h) * w, product.block) if form.average else product.block
        block = row_block(self.cpu, h * w, n, row, 0, torch.get_num_threads(), least)
        made = _prepared(size, form, product, [], Work(n, h * w, block), weights, gates + 1, True)
        assert isinstance(made.loop, BlockLoop)
        return PreparedGatedSum(self, made.loop, weights, size, torch.bfloat16)


TILED: dict[type, Callable[..., Bound]] = {
    Separable: TiledSeparable,
    Grouped: TiledGrouped,
    Upsample: TiledUpsample,
    GatedSum: TiledGatedSum,
}
