"""What all candidates of one `optimize` share: the model, its call, its answers, a folded copy, a captured program."""

import time
from collections.abc import Callable
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
from leanconv.deploy.program import Axes, capture_flat
from leanconv.deploy.verify import difference, has_nan
from leanconv.engine.trials import Trials
from leanconv.kernels.cpu.runtime.transpose import to_contiguous
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.running import Call, cloned

# What an engine's own measurements may take where nobody says otherwise.
MEASURING_S = 20.0
HALF = (torch.bfloat16, torch.float16)


class Workbench:
    """One model on one call. Everything is made when it is first asked for, and once.

    Attributes:
        model: as it was given; nothing here changes it.
        obstacle: why no other form can be verified against it, or "".
        forward_s: seconds of one call of it.
        dtype: the number type of its first floating-point input, or of its parameters.
        clock: what every form is timed with (`measure.latency.CLOCKS`). On one thread of the CPU the time that was
            computed: what neighbours take away decides nothing then.
        cpu: the processor that kernels are chosen for; None for this one.
        measuring_s: seconds that an engine may take for measurements of its own while it is prepared.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int, cpu: Cpu | None = None
    ) -> None:
        self.model, self.threads, self.cpu = model, threads, cpu
        self.tensors, self.frame = Frame.split((args, kwargs))
        self.single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self.device = self._device()
        self.dtype = self._dtype()
        self.clock = "process" if self.device.type == "cpu" and threads == 1 else "wall"
        self.measuring_s = MEASURING_S
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
        """The arguments once more, with tensors of their own."""
        args, kwargs = cloned(self.frame.join(self.tensors if tensors is None else tensors))
        return args, kwargs

    def _ask(self, tensors: list[Tensor]) -> Any:
        args, kwargs = self.call(tensors)
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def _obstacle(self, again: Any, call: Call) -> str:
        """Why nothing can be verified against the model. `again`: its answer to `call`, a second one on its inputs."""
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
        """The error of a form that computes in `dtype` (None: as the model does), and the seconds of its second call by
        the clock.
        """
        return self.trials.first(form, dtype)

    @cached_property
    def _folding(self) -> tuple[nn.Module, FoldReport]:
        folded = copied(self.model).requires_grad_(False)
        args, kwargs = self.call()
        return folded, fold_(folded, kwargs if not args else args if not kwargs else _bound(self.model, args, kwargs))

    @property
    def folded(self) -> nn.Module:
        """A copy of the model with everything folded that folds exactly."""
        return self._folding[0]

    @property
    def fold_report(self) -> FoldReport:
        return self._folding[1]

    def copy_of_folded(self, dtype: torch.dtype | None) -> nn.Module:
        """A folded copy of its own, in `dtype`."""
        made = copied(self.folded)
        return made if dtype is None else made.to(dtype)

    @cached_property
    def program(self) -> ExportedProgram:
        """The folded model as a flat program at the given sizes, in float32 where the model computes in half."""
        return self.captured(self.tensors)

    def captured(self, tensors: list[Tensor], axes: Axes | None = None) -> ExportedProgram:
        """Likewise on other tensors, with the dimensions in `axes` open where the model leaves them so."""
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
    def half(self) -> bool:
        """Whether the model computes in float16 or bfloat16."""
        return self.dtype in HALF or any(p.dtype in HALF for p in self.model.parameters())

    @cached_property
    def layers(self) -> int:
        """Leaf modules: what preparation times are estimated from."""
        return sum(1 for module in self.model.modules() if not any(module.children()))

    @property
    def folding_s(self) -> float:
        """Seconds that folding will take, about, and the model once in float64; 0 where it is done."""
        if "_folding" in self.__dict__:
            return 0.0
        parameters = sum(p.numel() for p in self.model.parameters())
        return 0.3 + 0.01 * self.layers + 5e-8 * parameters + 5 * self.forward_s

    @property
    def capture_s(self) -> float:
        """Seconds that folding and capturing will take, about; 0 where it is done."""
        return 0.0 if "program" in self.__dict__ else self.folding_s + 0.5 + 0.015 * self.layers

    def nested(self, run: Callable[..., Any], prepare: Callable[[Tensor], Tensor], *, cast: bool) -> Callable[..., Any]:
        """`run` called as the model is, every tensor through `prepare`; answers laid out as the model's.

        With `cast` they have the model's dtypes too.
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
        """A runtime of flat CPU tensors, called as the model is; answers laid out as the model's.

        With `widen`, half inputs go in as float32. `alone`: PyTorch computes nothing in it; the form has it as an
        attribute where that is true of the form too.
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
            return simple

        def form(*args: Any, **kwargs: Any) -> Any:
            given = [args[0]] if single else Frame.split((args, kwargs))[0]
            if half:
                given = [t.float() if t.dtype in HALF else t for t in given]
            found = _laid_out([t.to(dtype) for t, dtype in zip(run(*given), dtypes, strict=True)], dense)
            return found[0] if only else frame.join(found)

        return form


def _laid_out(tensors: list[Tensor], dense: list[bool]) -> list[Tensor]:
    """Contiguous where the given model's answers are: what reads them may ask for a view that channels_last has not."""
    return [to_contiguous(t) if wanted else t for t, wanted in zip(tensors, dense, strict=True)]


def _opaque(value: Any) -> list[Any]:
    """What is neither a tensor nor a plain value in a nested answer: PyTorch knows no parts of it."""
    constants = [each for _, each in Frame.split(value)[1].constants]
    return [each for each in constants if not isinstance(each, int | float | complex | str | bytes | type(None))]


def _bound(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments by their names, for a function that takes either kind alone."""
    import inspect

    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
