"""Primitives bound to their weights: packed once, compiled for the maps that arrive, called with maps alone."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.calibration.kept import calibrated
from leanconv.kernels.cpu.compilation.build import compiled_for
from leanconv.kernels.cpu.pipelines.element import ElementType, element_type
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.runtime.block_loop import BlockLoop
from leanconv.kernels.cpu.runtime.huge_pages import pack_into_huge_pages
from leanconv.kernels.cpu.runtime.int8_call import Int8Call
from leanconv.kernels.cpu.runtime.launch import Gates, KernelLaunch
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
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import check_channels

DTYPES = (torch.float32, torch.bfloat16)  # of maps; all maps of a call have the same
_KEPT = 64  # kernels of a bound primitive; each is some kilobytes


class PreparedKernel:
    """A bound primitive for one set of shapes: `prepared(*maps)` fills new outputs and returns them.

    Args:
        loop: what runs; its pointers are the maps, then `weights`, then the outputs.
        size: `N O P Q` of the output.
        average: whether `N O` averages are a second output, in float32.
        dtype: of the output's map.
        method: "direct", "strassen" or "winograd".
    """

    method = "direct"

    def __init__(
        self,
        loop: BlockLoop | Int8Call,
        weights: Sequence[Tensor],
        size: tuple[int, int, int, int],
        average: bool,
        dtype: torch.dtype,
    ) -> None:
        self.loop, self.weights = loop, list(map(pack_into_huge_pages, weights))
        self.size, self.average, self.dtype = size, average, dtype
        _, o, p, q = size
        self.strides = (p * q * o, 1, q * o, o)
        self._constant = [w.data_ptr() for w in self.weights]
        with torch.inference_mode(False):
            self._no_means = torch.empty(0, dtype=torch.float32)

    def results(self) -> tuple[Tensor, Tensor]:
        """New tensors for the outputs. Without an average, calls share one empty tensor (saves 1 µs)."""
        y = torch.empty_strided(self.size, self.strides, dtype=self.dtype)
        return y, torch.empty(self.size[:2], dtype=torch.float32) if self.average else self._no_means

    def __call__(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        y, means = self.results()
        if self.loop.native:
            outputs = [y.data_ptr(), means.data_ptr()] if self.average else [y.data_ptr()]
            self.loop.run(*[m.data_ptr() for m in maps], *self._constant, *outputs)
        else:
            self.loop(*maps, *self.weights, *([y, means] if self.average else [y]))
        return y, means

    def launch(self, averages: Sequence[Tensor] = ()) -> KernelLaunch:
        """One call on memory that exists; its operands are the maps, the result, and its average if there is one."""
        return self._launched(self.weights)

    def _launched(self, fixed: Sequence[Tensor], gates: Gates | None = None) -> KernelLaunch:
        maps = self.loop.count - len(fixed) - 1 - self.average
        return KernelLaunch(self.loop, maps, fixed, gates)


class Bound(ABC):
    """What the bound primitives share: a prepared kernel for each set of shapes. Safe in many threads.

    A subclass says in `_prepare(*maps)` how to put one together, for its `target`. Maps that are not there are None,
    and left out of the call.
    """

    planes = False  # whether an image in planes is read as it is

    def __init__(self, target: Target | None = None) -> None:
        self.target = calibrated(target or Target())
        self.cpu: Cpu = self.target.cpu
        self._kernels: dict[Any, PreparedKernel] = {}
        self._short: dict[Any, PreparedKernel] = {}
        self._tiles: dict[Hashable, list[Any]] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """The call with all maps in one list; see `interface.Bound`."""

    @abstractmethod
    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        """A kernel for maps like these."""

    def prepared(self, *maps: Tensor | None) -> PreparedKernel:
        """The kernel for maps like these (that it `takes`), for `torch.get_num_threads()` threads."""
        key = self._key(maps)
        found = self._kernels.get(key)
        if found is None:
            with compiled_for(self.cpu.isa):
                prepared = self._prepare(*maps)
            with self._lock:
                if len(self._kernels) >= _KEPT:
                    self._kernels = {}
                found = self._kernels[key] = prepared
        return found

    def prepare(self, *maps: Tensor | None) -> PreparedKernel | None:
        """The kernel to be launched on maps like these; None where they would be copied first, or without a runtime."""
        prepared = self.prepared(*maps) if self.takes(*maps) else None
        return prepared if prepared is not None and prepared.loop.native else None

    def prepare_in_place(self, *maps: Tensor | None) -> PreparedKernel | None:
        """Likewise, the result in the memory of the first map; None where that is not possible."""
        return None

    def takes(self, *maps: Tensor | None) -> bool:
        """Whether the kernel reads the maps where they lie, without a copy."""
        first, *rest = maps
        assert first is not None
        whole = bool(pixel_stride(first)) or (self.planes and in_planes(first))
        return whole and all(x is None or pixel_stride(x) for x in rest)

    @property
    def methods(self) -> set[str]:
        """The methods of the kernels prepared so far."""
        return {prepared.method for prepared in self._kernels.values()}

    def tile(self, core: Hashable, best: AnyTile, cost: Callable[[AnyTile], float]) -> AnyTile:
        """The tile for a kernel `core`: `best`, unless a compiled one is nearly as good (`reuse_compiled`).

        So most new sizes of a map compile nothing.
        """
        compiled = self._tiles.setdefault(core, [])
        found = reuse_compiled(best, compiled, cost)
        if found not in compiled:
            compiled.append(found)
        return found

    def matrix_tile(self, core: Hashable, width: int, pixels: int, channels: int, element: ElementType) -> Tile:
        """As `cost_model.matrix_tile` of all pixels in a row, see `tile`."""
        sizes = width, pixels, element.steps(channels), True, element.pairs
        best = matrix_tile(self.cpu, *sizes)
        return self.tile(core, best, lambda tile: matrix_cycles(self.cpu, tile, *sizes))

    def strassen_tile(self, width: int, pixels: int, depth: int) -> Tile | None:
        """As `cost_model.strassen_tile`, see `tile`."""
        best = strassen_tile(self.cpu, width, pixels, depth)
        if best is None:
            return None
        return self.tile("strassen", best, lambda tile: strassen_cycles(self.cpu, tile, width, pixels, depth))

    def _known(self, maps: Sequence[Tensor | None]) -> PreparedKernel | None:
        """The kernel for maps that came before and need neither a check nor a copy: the short way of a call."""
        return self._short.get(self._key(maps))

    def _call(self, given: Sequence[Tensor | None], maps: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Run on `maps`: `given`, copied where their layout required it. Without a copy the next call is short."""
        self._remember(given, maps)
        return self.prepared(*maps)(*[x for x in maps if x is not None])

    def _remember(self, given: Sequence[Tensor | None], maps: Sequence[Tensor | None]) -> None:
        if all(x is y for x, y in zip(given, maps, strict=True)):
            prepared = self.prepared(*maps)
            with self._lock:
                if len(self._short) >= _KEPT:
                    self._short = {}
                self._short[self._key(maps)] = prepared

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
    """The element type of a call's maps. Raises BadInput unless all have the same."""
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
