"""The state that all candidates of one `optimize` share: model, call, answers, folded copy, captured program."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from leanconv.agreement import Error
from leanconv.convert import FoldReport, fold_
from leanconv.copies import copied
from leanconv.deploy.calls import Frame
from leanconv.deploy.int8 import Calibration
from leanconv.deploy.program import Axes, capture_flat
from leanconv.deploy.verify import difference, has_nan
from leanconv.engine.trials import Still, Trials
from leanconv.kernels import Target, to_contiguous
from leanconv.measure.hardware.number_types import HALF, slowdown
from leanconv.running import Call, cloned

# Default limit of an engine's own measurements (autotuning).
MEASURING_S = 20.0


class Workbench:
    """One model and one call. Folded copies and captured programs are built on first use, once.

    Attributes:
        model: the given model. Nothing here changes it.
        obstacle: why no other form can be verified against the model, or "".
        forward_s: seconds of one call of the model.
        dtype: the number type of its first floating-point input, or of its parameters.
        clock: the key in `measure.timing.latency.CLOCKS` of the clock for all forms. On one CPU thread it is process
            time: load by other processes then decides nothing.
        target: what kernels are chosen for (None: this machine).
        still: inside `with still():`, other work of `optimize` rests, because something is timed.
        measuring_s: seconds that an engine may autotune during its preparation.
        calibration: the data for forms in torch.int8, and the loss that judges them. None if int8 is not asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        threads: int,
        target: Target | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.model, self.threads, self.target, self.calibration = model, threads, target, calibration
        self.tensors, self.frame = Frame.split((args, kwargs))
        self.single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self.device = self._device()
        self.dtype = self._dtype()
        self.clock = "process" if self.device.type == "cpu" and threads == 1 else "wall"
        self.measuring_s = MEASURING_S
        self.still: Still = nullcontext
        self.answer = self._ask(self.tensors)
        args, kwargs = self.call()
        start = time.perf_counter()
        with torch.no_grad():
            again = self.model(*args, **kwargs)
        self.forward_s = time.perf_counter() - start
        self.obstacle = self._obstacle(again, (args, kwargs))
        self.trials = Trials(model, self.frame, self.tensors, self.answer, self.clock)

    def _device(self) -> torch.device:
        held = [*self.model.parameters(), *self.model.buffers(), *self.tensors]
        return held[0].device if held else torch.device("cpu")

    def _dtype(self) -> torch.dtype:
        held = [t for t in (*self.tensors, *self.model.parameters()) if t.is_floating_point()]
        return held[0].dtype if held else torch.get_default_dtype()

    def call(self, tensors: list[Tensor] | None = None) -> Call:
        """Return the arguments with cloned tensors: a model may write into its inputs."""
        args, kwargs = cloned(self.frame.join(self.tensors if tensors is None else tensors))
        return args, kwargs

    def _ask(self, tensors: list[Tensor]) -> Any:
        args, kwargs = self.call(tensors)
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def _obstacle(self, again: Any, call: Call) -> str:
        """Return why nothing can be verified against the model, or "". `again` is its answer to the second `call`."""
        if has_nan(self.answer):
            return "the model's output has NaN in it"
        if not difference(self.answer, again).passes:
            if opaque := sorted({type(value).__name__ for value in _opaque(self.answer)}):
                return f"the model's output has {' and '.join(opaque)} in it, whose tensors are not found"
            return "two calls of the model give two answers"
        if not difference(self.tensors, Frame.split(call)[0]).passes:
            return "the model writes into its inputs"
        return ""

    def verify(self, form: Callable[..., Any], dtype: torch.dtype | None = None) -> tuple[Error, float]:
        """Return the error of a form that computes in `dtype` (None: the model's), and its second call's seconds.

        The error of a form in torch.int8 is its loss on the calibration data.
        """
        if dtype is torch.int8 and self.calibration is not None:
            seconds = self.trials.seconds(form, self.still)
            loss = self.calibration.loss(form)
            return Error(loss, loss, self.calibration.limit), seconds
        return self.trials.first(form, dtype, self.still)

    @cached_property
    def _folding(self) -> tuple[nn.Module, FoldReport]:
        folded = copied(self.model).requires_grad_(False)
        args, kwargs = self.call()
        return folded, fold_(folded, kwargs if not args else args if not kwargs else _bound(self.model, args, kwargs))

    @property
    def folded(self) -> nn.Module:
        """A copy of the model with all exact folds applied."""
        return self._folding[0]

    @property
    def fold_report(self) -> FoldReport:
        return self._folding[1]

    def copy_of_folded(self, dtype: torch.dtype | None) -> nn.Module:
        """Return a new copy of the folded model, in `dtype`."""
        model = copied(self.folded)
        return model if dtype is None else model.to(dtype)

    @cached_property
    def program(self) -> ExportedProgram:
        """The folded model as a flat program at the given sizes. A half-precision model becomes float32."""
        return self.captured(self.tensors)

    def captured(self, tensors: list[Tensor], axes: Axes | None = None) -> ExportedProgram:
        """Capture the folded model on other tensors, with the `axes` dynamic if the model permits it."""
        model, (args, kwargs) = self.folded, self.call(tensors)
        if self.half:
            model = self.copy_of_folded(torch.float32)
            args, kwargs = tree_map_only(Tensor, lambda t: t.float() if t.dtype in HALF else t, (args, kwargs))
        return capture_flat(model, args, kwargs, axes, fixable=True)

    @cached_property
    def dense(self) -> list[bool]:
        """Which tensors of the answer are contiguous."""
        return [t.is_contiguous() for t in Frame.split(self.answer)[0]]

    @property
    def plain(self) -> bool:
        """Whether the model takes one tensor and returns one of its dtype. Then a form of it can be stored."""
        return self.single and isinstance(self.answer, Tensor) and self.answer.dtype == self.tensors[0].dtype

    @property
    def half(self) -> bool:
        """Whether the model computes in float16 or bfloat16."""
        return self.dtype in HALF or any(p.dtype in HALF for p in self.model.parameters())

    @cached_property
    def call_s(self) -> float:
        """Estimated seconds of one call in a type for which this CPU has instructions."""
        slow = self.dtype if self.device.type == "cpu" and self.dtype in HALF else None
        return self.forward_s / max(1.0, slowdown(slow)) if slow else self.forward_s

    @cached_property
    def layers(self) -> int:
        """The number of leaf modules, from which preparation times are estimated."""
        return sum(1 for module in self.model.modules() if not any(module.children()))

    @property
    def folding_s(self) -> float:
        """Estimated seconds of folding and of one model call in float64. 0 after folding."""
        if "_folding" in self.__dict__:
            return 0.0
        parameters = sum(p.numel() for p in self.model.parameters())
        return 0.3 + 0.01 * self.layers + 5e-8 * parameters + 5 * self.call_s

    @property
    def capture_s(self) -> float:
        """Estimated seconds of folding and capturing. 0 after capturing."""
        return 0.0 if "program" in self.__dict__ else self.folding_s + 0.5 + 0.015 * self.layers

    def nested(self, run: Callable[..., Any], prepare: Callable[[Tensor], Tensor], *, cast: bool) -> Callable[..., Any]:
        """Wrap `run` in the model's call signature: `prepare` converts every input tensor.

        Answers get the model's memory format and, with `cast`, its dtypes.
        """
        dtypes, dense = [t.dtype for t in Frame.split(self.answer)[0]], self.dense

        def form(*args: Any, **kwargs: Any) -> Any:
            if self.single:
                args = (prepare(args[0]),)
            else:
                args, kwargs = tree_map_only(Tensor, prepare, (args, kwargs))
            answer = run(*args, **kwargs)
            if isinstance(answer, Tensor) and not cast:
                return to_contiguous(answer) if dense[0] else answer
            if cast or any(dense):
                tensors, frame = Frame.split(answer)
                if cast:
                    tensors = [t.to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
                answer = frame.join(_laid_out(tensors, dense))
            return answer

        return form

    def from_flat(
        self, run: Callable[..., list[Tensor]], *, widen: bool = True, alone: bool = False
    ) -> Callable[..., Any]:
        """Wrap a runtime of flat CPU tensors in the model's call signature. Answers get the model's memory format.

        With `widen`, half-precision inputs become float32. `alone`: PyTorch computes nothing in the runtime. The form
        gets the attribute `alone` if PyTorch computes nothing in the form either, and the runtime's `strict`.
        """
        tensors, frame = Frame.split(self.answer)
        dtypes, dense = [t.dtype for t in tensors], self.dense
        only = isinstance(self.answer, Tensor)
        single, half = self.single, self.half and widen

        def simple(x: Tensor) -> Tensor:
            answer = run(x)[0]
            if answer.dtype is not dtypes[0]:
                answer = answer.to(dtypes[0])
            return to_contiguous(answer) if dense[0] else answer

        if single and only and not half:
            simple.alone = alone and dtypes[0] == self.tensors[0].dtype  # type: ignore[attr-defined]
            simple.strict = getattr(run, "strict", False)  # type: ignore[attr-defined]
            return simple

        def form(*args: Any, **kwargs: Any) -> Any:
            given = [args[0]] if single else Frame.split((args, kwargs))[0]
            if half:
                given = [t.float() if t.dtype in HALF else t for t in given]
            found = _laid_out([t.to(dtype) for t, dtype in zip(run(*given), dtypes, strict=True)], dense)
            return found[0] if only else frame.join(found)

        return form


def _laid_out(tensors: list[Tensor], dense: list[bool]) -> list[Tensor]:
    """Make answers contiguous if the given model's are: their reader may need a view that channels_last lacks."""
    return [to_contiguous(t) if wanted else t for t, wanted in zip(tensors, dense, strict=True)]


def _opaque(value: Any) -> list[Any]:
    """Return the parts of a nested answer that are neither tensors nor plain values: PyTorch cannot look inside."""
    constants = [each for _, each in Frame.split(value)[1].constants]
    return [each for each in constants if not isinstance(each, int | float | complex | str | bytes | type(None))]


def _bound(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind positional arguments to their names, for a function that takes only one of the two kinds."""
    import inspect

    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
