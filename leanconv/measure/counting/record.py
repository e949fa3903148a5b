"""Record one forward of a model: every operation with its module, every module call, every torch function.

If possible nothing is computed: a copy of the model runs on fake tensors (shapes without data). A model that
needs real numbers, or has no copy, runs once for real and stays unchanged.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.copies import copied
from leanconv.errors import BadInput, LeanconvError
from leanconv.measure.counting.ops import OpCall, classify, flat, launches, norm_facts, tensor_bytes
from leanconv.measure.counting.origins import Origins
from leanconv.measure.counting.products import work_of
from leanconv.measure.state import countable, first_shape
from leanconv.nn import Operator
from leanconv.running import run, tensors, to_eval_, untouched_random, watched

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module: its name, the module, shapes of its first input and output, bytes of all of them."""

    name: str
    module: nn.Module
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class FunctionCall:
    """One outermost call of a torch function, for instance `torch.nn.functional.relu`; methods are not recorded.

    Attributes:
        room: the function's module.
        owner: the innermost running module.
        read, written: elements of its first input and first output.
        columns: columns of its second input.
    """

    name: str
    room: str
    owner: str
    read: int
    written: int
    columns: int


@dataclass
class Recording:
    """One recorded forward. `model`: the (fake) copy that ran; `executed`: whether the arithmetic ran."""

    model: nn.Module
    executed: bool
    ops: list[OpCall] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    functions: list[FunctionCall] = field(default_factory=list)
    weights: set[str] = field(
        default_factory=set
    )  # names of the parameters that convolutions and FC layers multiply by

    def row_of(self) -> dict[str, str]:
        """Module name -> its row: its outermost operator, or itself."""
        rows: dict[str, str] = {}
        operators: list[str] = []
        for name, module in self.model.named_modules():
            above = next((o for o in operators if name == o or o == "" or name.startswith(o + ".")), None)
            if above is None and (isinstance(module, Operator) or "parametrizations" in child_names(module)):
                operators.append(name)
                above = name
            rows[name] = name if above is None else above
        return rows

    def is_whole(self, name: str) -> bool:
        """Whether the module of that name is one row (a leaf or an operator), not a container."""
        module = self.model.get_submodule(name)
        return isinstance(module, Operator) or not child_names(module) - {"parametrizations"}


def child_names(module: nn.Module) -> set[str]:
    """The names of a module's direct children (a script module's `_modules` is no plain dict)."""
    return {name for name, _ in module.named_children()}


def record(model: nn.Module, inputs: Any) -> Recording:
    """Record one forward in eval mode; `model`, its buffers and the random generators stay unchanged."""
    model = countable(model)
    _check(model)
    try:
        return _record_fake(model, inputs)
    except LeanconvError:  # the network refuses its input; a second run would fail alike
        raise
    except Exception as error:
        _log.debug(
            "counting on fake tensors failed (%s: %s); the model runs once for real", type(error).__name__, error
        )
    recording = Recording(model, executed=True)
    with watched(model):
        _run(recording, inputs)
    return recording


def _check(model: nn.Module) -> None:
    if isinstance(model, torch.jit.RecursiveScriptModule):
        raise BadInput("the model is TorchScript, whose layers cannot be watched; give what it was made from")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise BadInput("the model has layers that wait for their first input to know their sizes; call it once first")


def _record_fake(model: nn.Module, inputs: Any) -> Recording:
    """Run a copy on fake tensors."""
    given = [*model.parameters(), *model.buffers(), *tensors(inputs)]
    if given and all(tensor.is_meta for tensor in given):  # already without numbers, and faster than fake tensors
        mode: Any = nullcontext()
        twin = copied(model)
        fake = inputs
    else:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(mode):
            twin = copied(model)
        fake = pytree.tree_map_only(Tensor, mode.from_tensor, inputs)
    recording = Recording(twin, executed=False)
    to_eval_(twin)
    with untouched_random(), torch.no_grad(), mode:
        _run(recording, fake)
    return recording


def _run(recording: Recording, inputs: Any) -> None:
    stack = _Stack(recording)
    with stack.hooks(), _Apis(stack), _Ops(stack):
        run(recording.model, inputs)


class _Stack:
    """The running modules, by hooks, and the outermost torch function."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.modules: list[tuple[str, str]] = []
        self.api = ""
        self.origins = Origins(recording.model)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for name, module in self.recording.model.named_modules():
            # A script module calls its children in C++; a parametrization belongs to its layer.
            if (isinstance(module, torch.jit.ScriptModule) and name) or "parametrizations" in name.split("."):
                continue
            handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            handles.append(module.register_forward_hook(self._leaving(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self.modules.append((name, type(module).__name__))

        return enter

    def _leaving(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            while self.modules and self.modules.pop()[0] != name:  # a child whose error was caught never left
                pass
            given = (args, kwargs)
            moved = sum(map(tensor_bytes, [*tensors(given), *tensors(out)]))
            call = ModuleCall(name, module, first_shape(given), first_shape(out), moved)
            self.recording.calls.append(call)

        return leave


class _Apis(TorchFunctionMode):
    """Records the outermost torch function: `adaptive_avg_pool2d`, for example, dispatches as a mean."""

    def __init__(self, stack: _Stack) -> None:
        super().__init__()
        self.stack = stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.stack.api = self.stack.api, getattr(func, "__name__", "")
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.stack.api = before
        room = getattr(func, "__module__", None) or ""  # a method, or `a + b`, has none
        if room.startswith("torch") and not before:
            owner = self.stack.modules[-1][0] if self.stack.modules else ""
            self.stack.recording.functions.append(_function_call(func, room, owner, (args, kwargs), out))
        return out


def _function_call(func: Any, room: str, owner: str, given: Any, out: Any) -> FunctionCall:
    taken, gave = tensors(given), tensors(out)
    read, written = (each[0].numel() if each else 0 for each in (taken, gave))
    columns = taken[1].shape[-1] if len(taken) > 1 and taken[1].dim() else 1
    return FunctionCall(getattr(func, "__name__", ""), room, owner, read, written, columns)


class _Ops(TorchDispatchMode):
    """Records every aten operation, and higher-order ones (flexible attention)."""

    supports_higher_order_operators = True

    def __init__(self, stack: _Stack) -> None:
        super().__init__()
        self.stack = stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            # In `inference_mode` composite operations arrive whole; their parts have rules.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if func.namespace != "prim":  # queries, for example of a tensor's device
            self._note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Append the OpCall of one dispatched operation."""
        stack = self.stack
        given, given_out = [a for a in flat([*args, *kwargs.values()]) if isinstance(a, Tensor)], tensors(out)
        origins = [stack.origins.of(tensor) for tensor in given]
        work = work_of(func, args, kwargs, out)
        factors = [stack.origins.of(tensor) for tensor in work.factors] if work else []
        kind = classify(func, args, stack.api, work, weighted=any(factors))
        affine, training = norm_facts(func, kind, args) if kind.endswith("_norm") else (False, False)
        if kind in ("conv", "linear"):
            stack.recording.weights.update(*(names for names in factors if names))
        stack.origins.follow(given_out, origins)
        started = launches(func, kind)
        stack.recording.ops.append(
            OpCall(
                name=getattr(func, "overloadpacket", func).__name__,
                kind=kind,
                api=stack.api,
                owner=stack.modules[-1][0] if stack.modules else "",
                inside=tuple(word for _, word in stack.modules),
                macs=work.macs if work else 0,
                bias=work.bias if work else 0,
                affine=affine,
                training=training,
                dynamic_kernel=kind == "conv" and factors[0] is None,
                read=given[0].numel() if given else 0,
                written=given_out[0].numel() if given_out else 0,
                bytes=sum(map(tensor_bytes, [*given, *given_out])) if started else 0,
                launches=started,
                sizes=work.sizes if work else (),
            )
        )
