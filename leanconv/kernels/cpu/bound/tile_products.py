"""One product on tiles: its operands, packed weights and call, put together for the kernels of `bound/tiles.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu.pipelines.packing import pack_tiles, pack_vector
from leanconv.kernels.cpu.runtime import tiles
from leanconv.kernels.cpu.runtime.block_loop import View
from leanconv.kernels.cpu.runtime.tiles import TILE, Operand, Panel, depth_of
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.ops.grouped import Grouped

LINE = 32  # numbers of a line of the cache
FEW = 8  # fewer channels than these are gathered with their taps: no tile could be filled otherwise


class Product:
    """A product for results of `columns` pixels a row (0: all pixels in a row).

    Args:
        add: appends packed weights to the kernel's and returns their view.
    """

    def __init__(self, cpu: Cpu, add: Callable[[Tensor], View], columns: int = 0) -> None:
        self.name, self._add, self.columns, self.period = tiles.arithmetic(cpu), add, columns, columns
        self.block = tiles.BLOCKS[self.name]
        self._views: list[View] = []  # after call, weights and result
        self._operands: list[Operand] = []
        self._panel = Panel()
        self._depth = self._residual = self._blend = 0
        self._weights: View | None = None
        self._bias: View | None = None
        self._call: View | None = None

    def pixels(self, views: Sequence[View], parts: Sequence[Tensor]) -> None:
        """The factors are maps: `parts` are the weights of each, `O C`. Maps that make no whole tiles are copied."""
        widths = [part.shape[1] for part in parts]
        depth, wide = depth_of(widths), padded(sum(widths))
        if depth and 2 * sum(widths) // depth <= 3 * wide // depth_of([wide]):
            steps = [(view.dims[1][1], self._arguments([view])) for view in views]
            self._operands = [
                Operand(at, 0, pixel, 0, width // depth) for (pixel, at), width in zip(steps, widths, strict=True)
            ]
        else:
            first = self._arguments(views)
            self._panel = Panel(len(views), first, columns=self.columns, wide=wide)
            depth, parts = depth_of([wide]), [torch.cat(list(parts), 1)]
            self._operands = [Operand(0, 0, wide, 0, wide // depth)]
        self._depth, self._weights = depth, self._add(pack_tiles(parts, depth))

    def taps(self, views: Sequence[View], form: Grouped, weight: Tensor, width: int, planes: bool) -> None:
        """The factors are the taps of a dense convolution, `O C R S`, of maps `width` pixels wide."""
        first = self._arguments(views)
        (r, s), (sh, sw), (dh, dw), (top, _, left, right) = form.kernel, form.stride, form.dilation, form.padding
        columns, c = width + left + right, sum(form.channels)
        taps = weight.permute(0, 2, 3, 1)  # O R S C
        if gathered := gathers(form):
            wide, depth = c, depth_of([gathered])
            self._operands = [Operand(0, 0, gathered, 0, gathered // depth)]
            parts = [taps.flatten(1)]
        else:
            run = s if dw == 1 else 1  # taps of a row that lie side by side
            wide = padded(c, run)
            depth = depth_of([run * wide])
            places = [(i, j) for i in range(r) for j in range(0, s, run)]
            parts = [torch.nn.functional.pad(taps[:, i, j : j + run], (0, wide - c)).flatten(1) for i, j in places]
            if sw == sh == 1:
                self.period = columns  # rows follow each other: pixels beside the map are computed, and not stored
            else:
                self.period = 0
            self._operands = [
                Operand(0, (i * dh * columns + j * dw) * wide, sw * wide, sh * columns * wide, run * wide // depth)
                for i, j in places
            ]
        self._panel = Panel(len(views), first, planes, r, s, sh, sw, dh, dw, top, left, columns, wide, gathered)
        self._depth, self._weights = depth, self._add(pack_tiles(parts, depth))

    def bias(self, bias: Tensor | None, outputs: int) -> None:
        self._bias = self._add(pack_vector(bias, TILE, outputs))

    def residual(self, view: View) -> None:
        """The map that is added before the activation."""
        self._residual = self._arguments([view])

    def blend(self, view: View, factors: Sequence[View]) -> None:
        """The map that is multiplied by the first factor, when the product is by the second, and the third is added."""
        self.residual(view)
        self._blend = self._arguments(factors)

    def close(self, outputs: int, activation: str) -> None:
        """All factors are there: pack the call, the last of the weights."""
        assert self._bias is not None
        call = tiles.Call(
            outputs,
            self._depth,
            self.columns,
            self.period,
            self._arguments([self._bias]),
            self._residual,
            self._blend,
            activation,
            self._operands,
            self._panel,
        )
        self._call = self._add(call.packed())

    def frame(self, out: View) -> tuple[tuple[int, Any], list[View]]:
        """The kernel of a closed product that makes `out`, and its arguments."""
        assert self._call is not None
        assert self._weights is not None
        return tiles.kernel(self.name), [self._call, self._weights, out, *self._views]

    def _arguments(self, views: Sequence[View]) -> int:
        """Append them; the index of the first."""
        self._views += views
        return 3 + len(self._views) - len(views)


def padded(channels: int, run: int = 1) -> int:
    """Numbers of a pixel with zeros behind its channels, so that `run` pixels make the fewest tiles."""
    wider = {-(-channels // unit) * unit for unit in (2, 4, 8, 16, 32)}
    return min(wider, key=lambda wide: (run * wide // depth_of([run * wide]), wide))


def gathers(form: Grouped) -> int:
    """Numbers of a pixel whose taps are gathered, in whole tiles; 0 for a form of more channels."""
    c = sum(form.channels)
    return padded(c * form.kernel[0] * form.kernel[1]) if c < FEW else 0


def scratch_stride(channels: int) -> int:
    """Numbers from pixel to pixel of scratch: an odd number of cache lines, as `gemm.Tile.scratch_stride` has it."""
    lines = -(-channels // LINE)
    return (lines + (lines % 2 == 0 and lines > 2)) * LINE
