"""Steps of a quantized primitive for one set of shapes: copies, depthwise taps and products over maps in scratch."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.int8_packing import (
    blocks_of,
    pack_block,
    pack_sums,
    pack_taps,
    padded_channels,
    spread_out,
    string_channels,
    sums_order,
)
from leanconv.kernels.cpu.bound.int8_taps import choose_products
from leanconv.kernels.cpu.runtime import int8_abi as abi
from leanconv.kernels.cpu.runtime.int8_call import Int8Call
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import row_block
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.ops.forms import Pair, Stencil
from leanconv.ops.quantized import CLAMPS, Quantization, limits, rounded_ratio

_ALIGN = 64
_STRIP = 3072  # bytes of a strip: its four planes and what is made of it stay in an L1 cache of 32 KiB
_LEAST_DEPTH = 4  # fours of bytes of a tile: twice the vectors' rate on Intel's figures; below, loads outweigh it
_SAFE = 1 << 30  # steps that a float32 may have without a limit before it becomes an int32


@dataclass(frozen=True)
class Part:
    """Channels of a concatenation: `channels` of the map at `place`, from `first` on. `by`: of a float32 map."""

    place: int
    channels: int
    first: int = 0
    by: Quantization | None = None


@dataclass(frozen=True)
class Around:
    """What a scratch map keeps around itself: columns on both sides, in how many strides they are dealt out."""

    left: int = 0
    right: int = 0
    split: int = 1
    border: bool = False


@dataclass(frozen=True)
class Sums:
    """Sums of a convolution: int32 biases without the zero points' part, multipliers to what is stored, a bound."""

    bias: Tensor
    multipliers: Tensor
    most: float  # steps of the largest sum


def sums(weights: Sequence[Tensor], zero_points: Sequence[Tensor], bias: Tensor, multipliers: Tensor) -> Sums:
    """Of weights `O ...` and the zero points that belong to their numbers."""
    wide = [w.to(torch.int64).flatten(1) for w in weights]
    shift = sum((w * z.expand_as(w)).sum(1) for w, z in zip(wide, zero_points, strict=True))
    size = sum(w.abs().sum(1) for w in wide) * 255 + bias.abs()
    most = float((size.double() * multipliers.double()).max()) if len(bias) else 0.0
    return Sums((bias.to(torch.int64) - shift).to(torch.int32), multipliers, most)


def tile_depth(quads: Sequence[int]) -> int:
    """Fours of bytes of a tile that divide those of each run, as many as possible; 0 where vectors are as fast.

    A tile takes 16 cycles however deep it is, on Intel's figures; vectors add 32 fours to 16 sums in them.
    """
    common = math.gcd(*quads)
    depth = max(d for d in range(1, abi.MOST_DEPTH + 1) if common % d == 0)
    return depth if depth >= _LEAST_DEPTH else 0


class Plan:
    """Collects the steps; `call` seals them. `vector`: bytes of the kernels' vectors; `arithmetic`: of products."""

    def __init__(self, vector: int, samples: int, rows: int, arithmetic: str = "vectors") -> None:
        self.vector, self.samples, self.rows, self.arithmetic = vector, samples, rows, arithmetic
        self.places: list[Any] = []
        self.steps: list[tuple[int, Any]] = []
        self.factors = abi.Factors()
        self._reads: list[tuple[int, int, int, int, int]] = []  # into, source, stride, first and last row it reads
        self._numbers: list[Tensor] = []
        self._packed = 0
        self._front = 0  # bytes of scratch before the maps: strips, a row of maxima
        self._beyond = 0  # bytes behind a map that may be read
        self._keep: list[Any] = []

    # Numbers and maps.

    def pack(self, numbers: Tensor) -> int:
        """Where the numbers lie among the packed ones."""
        data = numbers.contiguous().flatten().view(torch.uint8)
        at = self._packed
        self._packed += -(-len(data) // _ALIGN) * _ALIGN
        self._numbers += [data, data.new_zeros(self._packed - at - len(data))]
        return at

    def packed(self) -> Tensor:
        """All packed numbers."""
        return torch.cat([*self._numbers, torch.zeros(_ALIGN, dtype=torch.uint8)])

    def array(self, kind: Any, items: Sequence[Any]) -> int:
        """The address of an array in C."""
        made = (kind * len(items))(*items)
        self._keep.append(made)
        return ctypes.addressof(made)

    def memory(
        self, pointer: int, size: Pair, pixel: int, sample: int, dtype: torch.dtype, offset: int = 0, row: int = 0,
        channel: int = 1,
    ) -> int:  # fmt: skip
        """A map of the caller, steps in numbers: its pixels follow each other, unless `row` says where a row begins."""
        (h, w), each = size, dtype.itemsize
        made = abi.Place(
            pointer=pointer, element=abi.UINT8 if each == 1 else abi.FLOAT32, h=h, w=w, offset=offset * each,
            sample=sample * each, row=(row or w * pixel) * each, pixel=pixel * each, channel=channel * each, columns=w,
            split=1, fill=-1, step=1,
        )  # fmt: skip
        self.places.append(made)
        return len(self.places) - 1

    def map(self, x: Tensor, pointer: int) -> int:
        """A map of the caller: pixels evenly spaced, or planes."""
        n, _, h, w = x.shape
        pixel, sample = pixel_stride(x), x.stride(0) if n > 1 else 0
        return self.memory(pointer, (h, w), pixel or 1, sample, x.dtype, channel=1 if pixel else h * w)

    def scratch(
        self, pixel: int, size: Pair, around: Around = Around(), fill: Tensor | None = None, element: int = abi.UINT8
    ) -> int:
        """A map in scratch with `pixel` channels; `fill`: its zero points, where it has a border."""
        h, w = size
        columns = -(-(around.left + w + around.right) // around.split) * around.split
        bytes_each = 1 if element == abi.UINT8 else 4
        made = abi.Place(
            pointer=-1, element=element, h=h, w=w, row=columns * pixel * bytes_each, pixel=pixel * bytes_each,
            channel=bytes_each, left=around.left, columns=columns, split=around.split, border=around.border, fill=-1,
        )  # fmt: skip
        if around.border:
            assert fill is not None
            numbers = torch.zeros(pixel, dtype=torch.uint8)
            numbers[: len(fill)] = fill.to(torch.uint8)
            made.fill = self.pack(numbers)
        self.places.append(made)
        return len(self.places) - 1

    def in_memory(self, place: int) -> bool:
        return bool(self.places[place].pointer >= 0)

    def _step(self, kind: int, what: Any, reads: Sequence[tuple[int, int, int, int]]) -> None:
        self.steps.append((kind, what))
        self._reads += [(what.into, *read) for read in reads]

    # Steps.

    def copy(self, parts: Sequence[Part], into: int, order: Tensor | None = None) -> None:
        """Copy the parts one after the other; `order`: of one part, the source of each channel."""
        segments, at = [], 0
        for part in parts:
            by = part.by or Quantization(1.0)
            packed = -1 if order is None else self.pack(order.to(torch.int32))
            count = part.channels if order is None else len(order)
            segments.append(abi.Segment(part.place, part.first, count, at, packed, by.inverse, by.zero_point))
            at += count
        made = abi.Copy(into, len(segments), self.array(abi.Segment, segments))
        self._step(abi.COPY, made, [(part.place, 1, 0, 0) for part in parts])

    def gathered(self, parts: Sequence[Part], first: int, channels: int) -> list[Part]:
        """The parts that hold so many channels of their concatenation."""
        found, at = [], 0
        for part in parts:
            start, end = max(first, at), min(first + channels, at + part.channels)
            if start < end:
                found.append(Part(part.place, end - start, part.first + start - at, part.by))
            at += part.channels
        return found

    def finish(
        self,
        activation: str,
        output: Quantization | None,
        most: float,
        addend: tuple[int, Quantization] | None = None,
        *,
        unit: float = 1.0,
        blended: bool = False,
        factors: bool = False,
    ) -> Any:
        """From sums to what is stored; `most`: steps of the largest sum. `unit`: of the numbers the activation sees."""
        place, by = (-1, None) if addend is None else addend
        scale = 0.0 if by is None else rounded_ratio(by.scale, unit)
        fast = output is not None and activation in CLAMPS and most + 255 * scale < _SAFE
        mode = (abi.BLENDED if blended else abi.ADDED if by else abi.CLAMPED) if fast else abi.GENERAL
        low, high = limits(activation, output) if output is not None else (0, 255)
        return abi.Finish(
            mode, abi.ACTIVATIONS.index(activation), low, high, 0 if output is None else output.zero_point, place,
            0 if by is None else by.zero_point, blended, abi.FLOAT32 if output is None else abi.UINT8, scale,
            1.0 if output is None else output.inverse, factors,
        )  # fmt: skip

    def stencil(self, source: int, into: int, form: Stencil, taps: Tensor, made: Sums, finish: Any) -> None:
        """Depthwise taps `C R S` from a scratch map of these channels into one of as many bytes to the pixel.

        Where the taps are scaled by gates, their multipliers are the plan's factors.
        """
        place, target = self.places[source], self.places[into]
        sh, (dh, dw), (top, _, left, _) = form.stride[0], form.dilation, form.padding
        r = form.kernel[0]
        pair = 2 if sh == 1 and r > 1 and target.h > dh else 1
        pixel, vector = padded_channels(form.channels), self.vector
        columns = pixel // vector if pixel % vector == 0 else 1
        unit = vector if columns > 1 else pixel  # bytes of a pixel in a strip
        chosen, side_by_side = choose_products(taps, pair)
        quads: dict[tuple[Any, Any], int] = {}
        steps, slots, reach = [], [], 0
        for places, weights in chosen:
            at = [place.left - left + column * dw for _, column in places]
            shift = 0 if place.split > 1 and side_by_side else at[0] // place.split
            bytes_at = tuple(
                (column % place.split * (place.columns // place.split) + column // place.split - shift) * place.pixel
                for column in at
            )
            rows = tuple(row * dh for row, _ in places)
            quad = quads.setdefault((rows, bytes_at), len(quads))
            steps.append(abi.Tap(quad, shift * unit))
            slots.append(weights)
            reach = max(reach, shift * unit)
        self._beyond = max(self._beyond, 3 * dw * place.pixel)
        order = string_channels(form.channels, vector)
        count = target.w * unit
        phases = len(order) if columns == 1 else 1
        repeat = phases * vector
        strip = min(max(_STRIP // len(quads), 2 * reach) // repeat + 1, -(-count // repeat)) * repeat
        plane = (strip + reach + 2 * vector) // vector * vector + vector
        self._front = max(self._front, 4 * plane * len(quads) + vector)
        fours = [abi.Four((ctypes.c_int32 * 4)(*rows), (ctypes.c_int32 * 4)(*at)) for rows, at in quads]
        multipliers = spread_out(made.multipliers, order)
        if finish.factors:
            self.factors.kind, self.factors.row = 2, order.numel()
            self.factors.order = self.pack(order.to(torch.int32))
            self.factors.multipliers = self.pack(multipliers)
        step = abi.Stencil(
            source, into, sh, top, pair, len(fours), len(steps), dh if pair == 2 else 1,
            self.array(abi.Four, fours), self.array(abi.Tap, steps), columns, phases,
            place.pixel if columns > 1 else vector, pixel if columns > 1 else vector, unit, count, reach, strip,
            self.pack(pack_taps(torch.stack(slots), order)), self.pack(spread_out(made.bias, order)),
            self.pack(multipliers), finish,
        )  # fmt: skip
        reads = [(source, sh, -top, (r - 1) * dh - top)]
        self._step(abi.STENCIL, step, reads + ([(finish.addend, 1, 0, 0)] if finish.addend >= 0 else []))

    def product(
        self,
        runs: Sequence[tuple[Any, Sequence[Tensor]]],
        into: int,
        groups: Sequence[tuple[int, int]],
        made: Sequence[Sums],
        finish: Any,
        strides: Pair = (1, 1),
    ) -> None:
        """Sums over the runs. For each group of output channels: weights `outputs channels` in every run, channels a
        multiple of 4; its first channel in the result, and in the input of grouped runs.
        """
        blocks, order = [], []
        width = 0
        for group, (at, source) in enumerate(groups):
            weights, found = [each[group] for _, each in runs], made[group]
            for vectors, first, count in blocks_of(len(found.bias), self.vector):
                part = slice(first, first + count)
                offsets = (
                    self.pack(pack_block([w[part] for w in weights], vectors, self.vector)),
                    self.pack(pack_sums(found.bias[part], vectors, self.vector)),
                    self.pack(pack_sums(found.multipliers[part], vectors, self.vector)),
                )
                blocks.append(abi.Block(vectors, count, at + first, source, *offsets, width))
                channel = sums_order(self.vector, vectors)
                order.append(torch.where(channel < count, channel + at + first, -1))
                width += vectors * self.vector // 4
        if finish.factors:
            self.factors.row, self.factors.order = width, self.pack(torch.cat(order).to(torch.int32))
        described = [run for run, _ in runs]
        depth = tile_depth([run.quads for run in described]) if self.arithmetic != "vectors" else 0
        arithmetic = abi.ARITHMETICS.index(self.arithmetic if depth else "vectors")
        step = abi.Product(
            into, len(described), len(blocks), *strides, width, arithmetic, depth, self.array(abi.Run, described),
            self.array(abi.Block, blocks), finish,
        )  # fmt: skip
        reads = [(run.source, strides[0], run.row, run.row) for run in described]
        self._step(abi.PRODUCT, step, reads + ([(finish.addend, 1, 0, 0)] if finish.addend >= 0 else []))

    def pool(self, source: int, into: int, kernel: Pair, stride: Pair, sides: Pair) -> None:
        """The largest numbers, from map to map of the caller."""
        self._front = max(self._front, self.places[source].w * self.places[into].pixel)
        self._step(abi.POOL, abi.Pool(source, into, *kernel, *stride, *sides), [])

    # The end.

    def call(
        self, cpu: Cpu, threads: int, packed: int, count: int, average: tuple[int, int, int, Quantization] | None = None
    ) -> Int8Call:
        """The call, with `count` pointers. packed: pointer of the packed numbers.

        average: the place that is averaged, pointer of the result, rows of it per row of the work, its quantization.
        """
        self._spans()
        inside = [place for place in self.places if place.pointer < 0]
        outside = sum(place.row for place in self.places if place.pointer >= 0)
        row_bytes = sum(place.row * max(1, place.step) for place in inside) + outside
        halo = max((place.last - place.first for place in inside), default=0)
        block = row_block(cpu, self.rows, self.samples, row_bytes, halo, threads)
        channels = 0 if average is None else self.places[average[0]].pixel
        at = -(-max(self._front, 4 * channels) // _ALIGN) * _ALIGN
        for place in inside:
            place.offset = at
            held = ((block - 1) * place.step + place.last - place.first + 1) * place.row
            at += -(-(held + 4 * self.vector + self._beyond) // _ALIGN) * _ALIGN
        steps = [abi.Step(kind, 0, ctypes.addressof(what)) for kind, what in self.steps]
        self._keep.append(self.steps)
        made = abi.Call(
            self.samples, self.rows, block, len(steps), len(self.places), packed, self.array(abi.Step, steps),
            self.array(abi.Place, self.places), at, self.factors, -1,
        )  # fmt: skip
        if average is not None:
            made.average, made.sums, made.repeat, by = average
            made.channels, made.zero, made.scale = channels, by.zero_point, by.scale
        return Int8Call(made, count, self._keep)

    def _spans(self) -> None:
        """Which rows of each scratch map a block needs, from the last step to the first."""
        known: set[int] = {place for place, each in enumerate(self.places) if each.pointer >= 0}
        for into, source, stride, first, last in reversed(self._reads):
            target, place = self.places[into], self.places[source]
            if place.pointer >= 0:
                continue
            begin, end = target.first * stride + first, target.last * stride + last
            if source in known:
                begin, end = min(begin, place.first), max(end, place.last)
            place.step, place.first, place.last = target.step * stride, begin, end
            known.add(source)
