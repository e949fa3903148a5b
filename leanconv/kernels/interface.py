"""The protocol between engine and kernels: one backend for each kind of device, four steps from form to call.

    backend.bind(form, weights)        -> Bound: weights packed, any number of input shapes
    bound.prepare(*maps)               -> Prepared: kernels compiled and chosen for these shapes and strides
    prepared.launch()                  -> Launch: one call, its operands put in place by the caller
    backend.batch([launch, ...])       -> LaunchBatch: launches that run one after the other

A form (`ops.forms.Form`) describes a primitive without the sizes of its maps. Addresses and libraries stay behind these
protocols. `kernels.cpu.backend` implements them for CPUs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from leanconv.ops.forms import Form

if TYPE_CHECKING:
    from leanconv.kernels.cpu.tuning.target import Target


class Launch(Protocol):
    """One call of a kernel. Its operands are the maps in order, the result, and the result's average if it has one."""

    def put(self, operand: int, tensor: Tensor) -> None:
        """Use this tensor's memory for an operand; the caller keeps the tensor alive.

        Its shape, strides and dtype are those given to `prepare`.
        """


class LaunchBatch(Protocol):
    """Launches that run one after the other with nothing between them."""

    def __call__(self) -> None:
        """Run them. Raises MemoryError where there is no memory for scratch."""

    def timed(self) -> list[float]:
        """Run them; the seconds of each launch."""


class Prepared(Protocol):
    """A bound primitive, or a copy of a map, for inputs of one set of shapes and strides.

    Attributes:
        size, strides, dtype: of the result.
        average: whether the averages over its pixels, `N O` in float32, are a second result.
    """

    @property
    def size(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def average(self) -> bool: ...

    def launch(self, averages: Sequence[Tensor] = ()) -> Launch:
        """A call on existing memory. `averages`: inputs of a gated sum; contiguous float32 at fixed addresses."""


class Bound(Protocol):
    """A primitive with its weights packed. Safe in many threads.

    Maps come in the order of the form's function in `ops`: a of a gated sum, inputs, residual, gate; an
    optional map that is absent is None.
    """

    planes: bool  # whether an image in planes (`N C H W` dense) is read without a copy

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Check the maps, copy wrong layouts, fill new results: the map, and its average (empty if it has none)."""

    def prepare(self, *maps: Tensor | None) -> Prepared | None:
        """For maps like these; None where they would have to be copied first, or the kernel cannot be launched."""

    def prepare_in_place(self, *maps: Tensor | None) -> Prepared | None:
        """Likewise, the result in the memory of the first map; None where that is not possible."""


class Backend(Protocol):
    """The kernels of one kind of device."""

    dtypes: tuple[torch.dtype, ...]  # of maps

    def why_not(self) -> str:
        """Why the kernels cannot run here, and how to get them; "" where they can."""

    def status(self) -> tuple[str, str]:
        """Whether they run here ("yes", "no"); how they are compiled and kept, or why they do not run."""

    def drawback(self) -> str:
        """Why the kernels of this process are slower, or compiled more often, than they could be; "" if all is well."""

    def facts(self) -> dict[str, str]:
        """What else `leanconv doctor` says: the instructions that kernels may use, the calibration and its age."""

    def calibration_s(self) -> float:
        """Seconds that the first kernel of this process takes longer, because the device's speeds are not measured."""

    def calibrate(self, target: "Target | None" = None) -> None:
        """Measure the device's speeds now if they are not known."""

    def bind(self, form: Form, weights: Sequence[Tensor], target: "Target | None" = None) -> Bound | None:
        """The primitive with its weights; None where there is no kernel for the form."""

    def bind_to_tiles(self, form: Form, weights: Sequence[Tensor], target: "Target | None" = None) -> Bound | None:
        """Likewise, products on matrix tiles (bfloat16: or pairs): a second kernel of some forms; None without one."""

    def copy(self, x: Tensor, *, planes: bool) -> Prepared | None:
        """A copy of maps like `x`, contiguous (`planes`) or channels_last; None where PyTorch's is as good."""

    def allocate(self, size: int, *, huge: bool = False) -> Tensor:
        """Uninitialised bytes, with room behind them for vectors that read past a map's end.

        `huge`: in huge pages whatever the size; large sizes always are.
        """

    def batch(self, launches: Sequence[Launch]) -> LaunchBatch:
        """Combine launches into one call of the runtime, on `torch.get_num_threads()` threads."""

    def compiling_ahead(self) -> AbstractContextManager[object]:
        """Within this context `prepare` only records kernels; on exit they are compiled in parallel.

        Bound primitives that were prepared inside cannot run.
        """
