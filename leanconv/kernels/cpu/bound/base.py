"""Primitives bound to their weights: packed once, compiled for what arrives, called with maps alone."""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.pipelines.element import ElementType, element_type
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.runtime.huge_pages import pack_into_huge_pages
from leanconv.kernels.cpu.runtime.launch import Average, Program, View
from leanconv.kernels.cpu.runtime.tensors import in_planes, new_map, pixel_stride
from leanconv.kernels.cpu.runtime.transpose import ensure_nhwc
from leanconv.kernels.cpu.tuning.cost_model import (
    AnyTile,
    matrix_cycles,
    matrix_tile,
    reuse_compiled,
    strassen_cycles,
    strassen_tile,
)
from leanconv.kernels.cpu.tuning.cpu import Cpu, this_cpu
from leanconv.ops.forms import check_channels

DTYPES = (torch.float32, torch.bfloat16)  # that maps may have, all of a call the same
_KEPT = 64  # programs of a bound primitive; each is some kilobytes


class Step:
    """A bound primitive for one set of shapes: `step(*maps)` fills new outputs and gives them back.

    Args:
        program: what runs; its pointers are the maps, then `weights`, then the outputs.
        size: `N O P Q` of the output.
        average: whether `N O` averages are a second output, in float32.
        dtype: of the output's map.
        method: "direct", or by what fewer multiplications are made.
    """

    method = "direct"

    def __init__(
        self,
        program: Program,
        weights: Sequence[Tensor],
        size: tuple[int, int, int, int],
        average: bool,
        dtype: torch.dtype,
    ) -> None:
        self.program, self.weights, self.size, self.average = (
            program,
            list(map(pack_into_huge_pages, weights)),
            size,
            average,
        )
        self.dtype = dtype
        _, o, p, q = size
        self.strides = (p * q * o, 1, q * o, o)
        self._constant = [w.data_ptr() for w in self.weights]
        with torch.inference_mode(False):
            self._no_means = torch.empty(0, dtype=torch.float32)

    def results(self) -> tuple[Tensor, Tensor]:
        """New tensors for the outputs. An average of no numbers is the same one in every call: 1 µs less."""
        y = torch.empty_strided(self.size, self.strides, dtype=self.dtype)
        return y, torch.empty(self.size[:2], dtype=torch.float32) if self.average else self._no_means

    def __call__(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        y, means = self.results()
        if self.program.native:
            outputs = [y.data_ptr(), means.data_ptr()] if self.average else [y.data_ptr()]
            self.program.run(*[m.data_ptr() for m in maps], *self._constant, *outputs)
        else:
            self.program(*maps, *self.weights, *([y, means] if self.average else [y]))
        return y, means


class Bound:
    """What the primitives share: a step for each set of shapes, made when it is first met. Safe in many threads.

    A subclass says in `_step(*maps)` how to make one, for its `cpu`; maps that are not there are None, and left out of
    the call.
    """

    planes = False  # whether an image in planes is read as it is

    def __init__(self, cpu: Cpu | None = None) -> None:
        self.cpu = cpu or this_cpu()
        self._steps: dict[Any, Step] = {}
        self._short: dict[Any, Step] = {}
        self._made: dict[Hashable, list[Any]] = {}
        self._lock = threading.Lock()

    def _step(self, *maps: Tensor | None) -> Step:
        raise TypeError(f"{type(self).__name__} makes no steps")

    def step(self, *maps: Tensor | None) -> Step:
        """The step for maps like these (that it `takes`), for `torch.get_num_threads()` threads."""
        key = self._key(maps)
        found = self._steps.get(key)
        if found is None:
            made = self._step(*maps)
            with self._lock:
                if len(self._steps) >= _KEPT:
                    self._steps = {}
                found = self._steps[key] = made
        return found

    @property
    def methods(self) -> set[str]:
        """By which methods its maps were made so far."""
        return {step.method for step in self._steps.values()}

    def tile(self, core: Hashable, best: AnyTile, cost: Callable[[AnyTile], float]) -> AnyTile:
        """The tile for a kernel `core`: `best`, unless this primitive has a kernel that is nearly as good (`reused`).

        So most new sizes of a map compile nothing.
        """
        made = self._made.setdefault(core, [])
        found = reuse_compiled(best, made, cost)
        if found not in made:
            made.append(found)
        return found

    def matrix_tile(self, core: Hashable, width: int, pixels: int, channels: int, element: ElementType) -> Tile:
        """As `tiles.matrix_tile` of all pixels in a row, see `tile`."""
        sizes = width, pixels, element.steps(channels), True, element.pairs
        best = matrix_tile(self.cpu, *sizes)
        return self.tile(core, best, lambda tile: matrix_cycles(self.cpu, tile, *sizes))

    def strassen_tile(self, width: int, pixels: int, depth: int) -> Tile | None:
        """As `cost_model.strassen_tile`, see `tile`."""
        best = strassen_tile(self.cpu, width, pixels, depth)
        if best is None:
            return None
        return self.tile("strassen", best, lambda tile: strassen_cycles(self.cpu, tile, width, pixels, depth))

    def takes(self, x: Tensor) -> bool:
        """Whether a step reads the map where it lies, without a copy."""
        return bool(pixel_stride(x)) or (self.planes and in_planes(x))

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__name__} cannot be called")

    def _known(self, maps: Sequence[Tensor | None]) -> Step | None:
        """The step for maps that were met before and need neither a check nor a copy: the short way of a call."""
        return self._short.get(self._key(maps))

    def _call(self, given: Sequence[Tensor | None], maps: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Run on `maps`, which are `given` made ready; where they are the same, the next call is short."""
        self._remember(given, maps)
        return self.step(*maps)(*[x for x in maps if x is not None])

    def _remember(self, given: Sequence[Tensor | None], maps: Sequence[Tensor | None]) -> None:
        if all(x is y for x, y in zip(given, maps, strict=True)):
            step = self.step(*maps)
            with self._lock:
                if len(self._short) >= _KEPT:
                    self._short = {}
                self._short[self._key(maps)] = step

    @staticmethod
    def _key(maps: Sequence[Tensor | None]) -> tuple[Any, ...]:
        return (torch.get_num_threads(), *[None if x is None else (x.shape, x.stride(), x.dtype) for x in maps])


def ready(x: Tensor, planes: bool = False) -> Tensor:
    """`x` as the kernels take it; with `planes`, an image in planes as it is.

    Raises BadInput unless it is a map of float32 or bfloat16 on the CPU.
    """
    if x.dtype not in DTYPES or x.device.type != "cpu" or x.dim() != 4:
        raise BadInput(
            f"the CPU kernels take float32 maps N C H W on the CPU, or bfloat16, got {x.dtype} {tuple(x.shape)}"
        )
    if x.shape[2] * x.shape[3] * max(x.shape[1], x.stride(3)) >= 2**31:
        raise BadInput(f"a sample of {tuple(x.shape[1:])} has 2³¹ numbers or more: the CPU kernels count in 32 bits")
    return x if planes and in_planes(x) else ensure_nhwc(x)


def check_fit(maps: Sequence[Tensor], n: int, size: Sequence[int]) -> None:
    """Raises BadInput unless the maps have n samples of that height and width: kernels take addresses, nothing is
    broadcast, and a smaller map would be read beyond its end.
    """
    if any(x.shape != (n, x.shape[1], *size) for x in maps):
        raise BadInput(f"maps of {n} samples of {size[0]}×{size[1]} are needed, got {[tuple(x.shape) for x in maps]}")


def element_type_of(cpu: Cpu, *maps: Tensor | None) -> ElementType:
    """How the maps of a call are stored. Raises BadInput unless all in the same way."""
    found = {x.dtype for x in maps if x is not None}
    if len(found) != 1:
        raise BadInput(f"maps of one dtype are needed, got {', '.join(sorted(map(str, found)))}")
    return element_type(found.pop(), cpu.bf16)


def check_vectors(vectors: Sequence[Tensor], n: int, channels: Sequence[int]) -> None:
    """Raises BadInput unless they are one number per sample and channel."""
    if [tuple(x.shape) for x in vectors] != [(n, c) for c in channels]:
        wanted = [(n, c) for c in channels]
        raise BadInput(f"averages and gates of sizes {wanted} are needed, got {[tuple(x.shape) for x in vectors]}")


def empty_result(
    n: int, o: int, size: tuple[int, int], average: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """The result where nothing is to compute (no sample), else None. Raises BadInput where no pixel is left."""
    if min(size) < 1:
        raise BadInput(f"the output would have {size[0]}×{size[1]} pixels: the input is smaller than the kernel")
    if n:
        return None
    return new_map(0, o, *size, dtype), torch.empty((0, o) if average else (0,))


def checked(form: Any, inputs: Sequence[Tensor]) -> tuple[int, tuple[int, int], tuple[Tensor, Tensor] | None]:
    """Samples and output size of a call, and its result where nothing is to compute. Raises BadInput for maps that do
    not fit the form or each other.
    """
    check_channels(inputs, form.channels)
    n, size = inputs[0].shape[0], form.size(*inputs[0].shape[2:])
    check_fit(inputs, n, inputs[0].shape[2:])
    return n, size, empty_result(n, form.width, size, form.average, inputs[0].dtype)


def map_view(pointer: int, x: Tensor, first: int, channels: int) -> View:
    """Channels of a map as `c x y`."""
    n, _, h, w = x.shape
    pixel = pixel_stride(x)
    return View(
        pointer,
        ((channels, 1), (w, pixel), (h, w * pixel)),
        first,
        x.stride(0) if n > 1 else 0,
        half=x.dtype.itemsize == 2,
    )


def planes_view(pointer: int, x: Tensor) -> View:
    """An image in planes as `x c y`."""
    n, c, h, w = x.shape
    return View(pointer, ((w, 1), (c, h * w), (h, w)), 0, c * h * w if n > 1 else 0, half=x.dtype.itemsize == 2)


def flat_view(pointer: int, x: Tensor, first: int, channels: int) -> View:
    """Channels of a map as `c x`, all pixels in a row."""
    n, _, h, w = x.shape
    return View(
        pointer,
        ((channels, 1), (h * w, pixel_stride(x))),
        first,
        x.stride(0) if n > 1 else 0,
        half=x.dtype.itemsize == 2,
    )


def vector_view(pointer: int, length: int, offset: int = 0, sample: int = 0) -> View:
    """A vector; `sample` numbers from one sample's to the next."""
    return View(pointer, ((length, 1),), offset, sample)


def weights_view(pointer: int, packed: Tensor) -> View:
    """Packed weights, the last dimension innermost."""
    dims = tuple(zip(reversed(packed.shape), reversed(packed.stride()), strict=True))
    return View(pointer, dims, half=packed.dtype.itemsize == 2)


def out_view(pointer: int, size: tuple[int, int, int, int], first: int, channels: int, element: ElementType) -> View:
    """Channels of a dense output as `c x y`, rows cut to the block."""
    _, o, p, q = size
    return View(pointer, ((channels, 1), (q, o), (p, q * o)), first, p * q * o, rows=True, half=element.bytes == 2)


def flat_out_view(pointer: int, size: tuple[int, int, int, int], element: ElementType) -> View:
    """A dense output as `c x`, pixels cut to the block."""
    _, o, p, q = size
    return View(pointer, ((o, 1), (p * q, o)), 0, p * q * o, rows=True, half=element.bytes == 2)


def average_of(
    pointer: int,
    result: int,
    size: tuple[int, int, int, int],
    element: ElementType,
    flat: bool = False,
    apart: bool = False,
) -> Average:
    """The average of a dense output that was made in blocks of rows, or of pixels (`flat`), or of neither (`apart`)."""
    _, o, p, q = size
    columns, row = (1, o) if flat else (q, q * o)
    return Average(pointer, result, o, columns, p * q * o, row, element.bytes == 2, p if apart else 0)
