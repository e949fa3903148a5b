"""Build the kernels of a separable convolution for given maps: kernel keys, register tiles, operands, row blocks."""

import math
import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import (
    Bound,
    PreparedKernel,
    element_type_of,
)
from leanconv.kernels.cpu.bound.channel_chains import ChannelChain, Parts
from leanconv.kernels.cpu.bound.views import (
    average_of,
    flat_out_view,
    flat_view,
    map_view,
    out_view,
    vector_view,
    weights_view,
)
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines import pointwise, separable
from leanconv.kernels.cpu.pipelines.depthwise import Track, unrolls_taps
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_projection, pack_vector
from leanconv.kernels.cpu.runtime.block_loop import BlockLoop, Prefetch, View, Work
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import fill, lanes_for, row_block, strip, summed_rows, whole_units
from leanconv.ops.forms import Stencil


class KernelBuilder:
    """Puts one prepared kernel together. Pointers: inputs, residual, gate, weights, output, averages."""

    def __init__(
        self,
        bound: Bound,
        parts: Parts,
        inputs: list[Tensor],
        residual: Tensor | None,
        gate: Tensor | None,
        size: tuple[int, int, int, int],
    ) -> None:
        self.bound, self.parts, self.form, self.inputs, self.size = bound, parts, parts.form, inputs, size
        self.cpu = bound.cpu
        self.residual, self.gate, self.element = residual, gate, element_type_of(bound.cpu, *inputs, residual)
        self.pointers = len(inputs) + (residual is not None) + (gate is not None)
        self.weights: list[Tensor] = []
        self.at_residual, self.at_gate = len(inputs), len(inputs) + (residual is not None)

    def depthwise(self) -> PreparedKernel:
        """One kernel for each chain, all of them on a block of rows before the next block."""
        views, kernels, first = [], [], 0
        for chain, taps in zip(self.parts.chains, self.parts.taps, strict=True):
            core = separable.SeparableCore(
                (self.track(chain),),
                None,
                self.size[1],
                False,
                self.form.activation,
                self.residual_pixel(),
                False,
                self.element,
            )
            lanes = lanes_for(self.cpu, chain.channels)
            arguments = [self.input(chain), *map(self.add, taps)]
            if self.residual is not None:
                arguments.append(map_view(self.at_residual, self.residual, first, chain.channels))
            kernels.append(kernel(separable.depthwise, core, Tile(core.tracks[0].tiles[-1], lanes, lanes)))
            views.append((arguments, first, chain.channels))
            first += chain.channels
        out = self.pointers + len(self.weights)
        listed = [
            (made, [*arguments, out_view(out, self.size, start, channels, self.element)])
            for made, (arguments, start, channels) in zip(kernels, views, strict=True)
        ]
        return self.finish(listed, self.row_work(torch.get_num_threads()), flat=False)

    def projected(self) -> PreparedKernel:
        """Stencils, then the 1×1 of whole rows of pixels."""
        form, (n, o, p, q), work = self.form, self.size, self.row_work(torch.get_num_threads())
        assert self.parts.project is not None
        core = self.core()
        # One tile for any number of threads: the width of its vectors can change the last bit of a stencil.
        tile = self.bound.matrix_tile(core, o, self.row_work(1).last * q, form.middle, self.element)
        while work.last * q < tile.pixels:
            work = replace(work, block=work.block + self._unit())
        arguments: list[View] = []
        for chain, taps, column in zip(self.parts.chains, self.parts.taps, self.columns(), strict=True):
            arguments += [self.input(chain), *map(self.add, taps)]
            arguments += self._projection(column, chain.channels, tile)
        if form.bias:
            arguments.append(self.add(pack_vector(self.parts.bias, tile.block, o)))
        if self.residual is not None:
            arguments.append(flat_view(self.at_residual, self.residual, 0, o))
        target = flat_out_view(self.pointers + len(self.weights), self.size, self.element)
        arguments = [target, *arguments, target]
        made = kernel(separable.projected, core, tile)
        return self.finish([(made, arguments)], Work(n, p * q, work.block * q), True, fetches=self.fetches(core))

    def core(self) -> separable.SeparableCore:
        """The key (core) of a kernel that runs the stencils and then the 1×1."""
        form, o = self.form, self.size[1]
        return separable.SeparableCore(
            tuple(map(self.track, self.parts.chains)),
            o,
            o,
            form.bias,
            form.activation,
            self.residual_pixel(),
            form.gate,
            self.element,
        )

    def fetches(self, core: separable.SeparableCore) -> list[Prefetch]:
        """Prefetches of the maps that are read in place and (all samples) too large for the second-level cache."""
        found: dict[int, Prefetch] = {}
        for chain, track in zip(self.parts.chains, core.tracks, strict=True):
            if track.direct and self.element.bytes * self.inputs[chain.index].numel() >= 2 * self.cpu.l2:
                made = Prefetch(self.input(chain), self.size[3], *_rows_read(track.stencils))
                found[chain.index] = made.joined(found.get(chain.index, made))
        return list(found.values())

    def pointwise(self) -> PreparedKernel:
        """A 1×1 alone: all pixels in a row."""
        form, (n, o, p, q) = self.form, self.size
        pixels = p * q
        chains = self.parts.chains
        core = pointwise.Pointwise(
            tuple((chain.channels, pixel_stride(self.inputs[chain.index])) for chain in chains),
            o,
            form.bias,
            form.activation,
            self.residual_pixel(),
            form.gate,
            element=self.element,
        )
        tile = self.bound.matrix_tile(core, o, pixels, form.middle, self.element)
        arguments: list[View] = []
        for chain, column in zip(chains, self.columns(), strict=True):
            arguments.append(flat_view(chain.index, self.inputs[chain.index], chain.first, chain.channels))
            arguments += self._projection(column, chain.channels, tile)
        if form.bias:
            arguments.append(self.add(pack_vector(self.parts.bias, tile.block, o)))
        if self.residual is not None:
            arguments.append(flat_view(self.at_residual, self.residual, 0, o))
        arguments.append(flat_out_view(self.pointers + len(self.weights), self.size, self.element))
        # A block's input is read once for every panel of weights, its output only if it is averaged.
        kept = form.middle + o * form.average
        least = whole_units(summed_rows(p) * q, tile.pixels) if form.average else tile.pixels
        block = row_block(self.cpu, pixels, n, self.element.bytes * kept, 0, torch.get_num_threads(), least)
        work = Work(n, pixels, block, tile.pixels)
        return self.finish([(kernel(pointwise.pipeline, core, tile), arguments)], work, flat=True)

    def finish(
        self,
        kernels: list[tuple[tuple[int, object], list[View]]],
        work: Work,
        flat: bool,
        apart: bool = False,
        fetches: Sequence[Prefetch] = (),
        unit: int | None = None,
    ) -> PreparedKernel:
        """Add output, average and prefetches, and build the prepared kernel. `unit`: as `average_of` has it."""
        out, average = self.pointers + len(self.weights), None
        if self.form.average:
            unit = unit or summed_rows(self.size[2])
            average = average_of(out, out + 1, self.size, self.element, unit, flat, apart)
        loop = BlockLoop(kernels, work, average, fetches)
        return PreparedKernel(loop, self.weights, self.size, self.form.average, self.element.dtype)

    def add(self, packed: Tensor) -> View:
        """Append packed weights; return their view."""
        self.weights.append(packed)
        return weights_view(self.pointers + len(self.weights) - 1, packed)

    def track(self, chain: ChannelChain) -> Track:
        """The track of a chain: tile sizes, strips, and whether it reads its input in place."""
        stencils = tuple(replace(s, first=0) for s in chain.stencils)
        x = self.inputs[chain.index]
        sizes = [(x.shape[2], x.shape[3])]
        for stencil in stencils:
            sizes.append(stencil.size(*sizes[-1]))
        widths = [width for _, width in sizes]

        def strips(tiles: tuple[int, ...]) -> tuple[int, ...]:
            spans = [(s.kernel[0] - 1) * s.dilation[0] + 1 for s in stencils]
            steps = [tile * s.stride[1] for tile, s in zip(tiles[1:], stencils, strict=True)]
            return (0, *(strip(self.cpu, *each) for each in zip(spans, widths, steps, strict=False)))

        def pixels(kept: tuple[tuple[int, ...], tuple[int, ...], bool]) -> float:
            """Pixels computed for a row, over pixels needed; infinite where the kernel does not fit here."""
            if kept[1:] != (strips(kept[0]), from_memory) or any(map(operator.gt, kept[0], widths)):
                return math.inf
            return sum(-(-width // tile) * tile / width for width, tile in zip(widths, kept[0], strict=True))

        direct = self.parts.project is not None and self._reads_in_place(stencils[0], widths[1])
        copied = len(stencils) > 1 or not direct
        from_memory = copied and self.element.bytes * x.shape[1] * x.shape[2] * x.shape[3] > 4 * self.cpu.l2
        if direct:
            widths[1] -= sum(stencils[0].padding[2:])
        best = tuple(map(fill, widths))
        return Track(
            pixel_stride(x),
            chain.channels,
            stencils,
            *self.bound.tile(chain, (best, strips(best), from_memory), pixels),
            direct,
        )

    def _reads_in_place(self, form: Stencil, width: int) -> bool:
        """Whether a first stencil with `width` columns of output reads the map where it lies: without a copy.

        A copy costs as much as three taps. It pays where each tap would widen the number again. It also pays where the
        map has no interior, or a wide border.
        """
        (r, s), (_, _, left, right) = form.kernel, form.padding
        plain = form.stride == (1, 1) and r * s > 1 and unrolls_taps(form) and self.element.dtype == torch.float32
        return plain and max(left, right) <= 8 and width > left + right

    def input(self, chain: ChannelChain) -> View:
        """The chain's channels of its input map."""
        return map_view(chain.index, self.inputs[chain.index], chain.first, chain.channels)

    def columns(self) -> list[int]:
        """The first column of each chain in the 1×1."""
        starts, at = [], 0
        for chain in self.parts.chains:
            starts.append(at)
            at += chain.channels
        return starts

    def _projection(self, column: int, channels: int, tile: Tile) -> list[View]:
        """The packed 1×1 of a chain and, where there is one, its gate."""
        assert self.parts.project is not None
        part = self.parts.project[:, column : column + channels]
        views = [self.add(pack_projection(part, tile.block, self.element))]
        if self.gate is not None:
            views.append(vector_view(self.at_gate, channels, column, self.gate.shape[1]))
        return views

    def residual_pixel(self) -> int:
        return 0 if self.residual is None else pixel_stride(self.residual)

    def _unit(self) -> int:
        """Rows of which blocks are multiples."""
        return summed_rows(self.size[2]) if self.form.average else 1

    def row_work(self, threads: int) -> Work:
        """The row blocks, from the scratch of one output row and the halo."""
        n, o, p, q = self.size
        row_bytes, halo = self.element.bytes * q * o, 0
        for chain in self.parts.chains:
            step = 1
            for stencil in reversed(chain.stencils):
                step *= stencil.stride[0]
                halo = max(halo, (stencil.kernel[0] - 1) * stencil.dilation[0])
                row_bytes += 4 * chain.channels * q * step * step
        return Work(n, p, row_block(self.cpu, p, n, row_bytes, halo, threads, self._unit()))


def _rows_read(stencils: Sequence[Stencil]) -> tuple[int, int]:
    """The last input row that output row 0 reads, and the input rows per further output row."""
    last, step = 0, 1
    for form in reversed(stencils):
        last = last * form.stride[0] + (form.kernel[0] - 1) * form.dilation[0] - form.padding[0]
        step *= form.stride[0]
    return last, step
