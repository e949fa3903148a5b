"""Run a user's model and leave no trace: how inputs reach it, which tensors it takes and gives, what is put back."""

import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import SUPPORTED_NODES, tree_map_only

from leanconv.errors import BadInput, LeanconvError, error_line

# A tensor is the only argument, a tuple or list the positional ones, a dict the named ones.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]
V = TypeVar("V")


def as_call(inputs: Inputs) -> Call:
    """The positional and the named arguments that `inputs` stands for. Raises BadInput for anything else."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        if not all(isinstance(key, str) for key in inputs):
            raise BadInput("inputs given as a dict are the model's named arguments: every key must be a string")
        return (), dict(inputs)
    if isinstance(inputs, list | tuple):
        return tuple(inputs), {}
    raise BadInput(
        f"inputs must be a tensor, a tuple of arguments or a dict of named ones, got {type(inputs).__name__}"
    )


def run(model: Callable[..., Any], inputs: Inputs) -> Any:
    """`model(inputs)`, `model(*inputs)` or `model(**inputs)`; the model's own errors pass through."""
    positional, named = as_call(inputs)
    return model(*positional, **named)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """As `run`. Raises BadInput where the model does not take the inputs."""
    positional, named = as_call(inputs)
    with explained(lambda: f"inputs {shapes(inputs)}{_other_types(model, inputs)}"):
        return model(*positional, **named)


@contextmanager
def explained(what: str | Callable[[], str]) -> Iterator[None]:
    """Raises BadInput, with the place in the model's code, where a model fails inside. `what`: what it runs on."""
    try:
        yield
    except LeanconvError:
        raise
    except Exception as error:
        text = what if isinstance(what, str) else what()
        raise BadInput(f"the model does not run on {text}: {error_line(error)}") from error


def _other_types(model: nn.Module, inputs: Inputs) -> str:
    """` of uint8, where its weights are float32`, for pictures of another type than the weights'; else ""."""
    weights = {t.dtype for t in model.parameters() if t.is_floating_point()}
    given = {t.dtype for t in tensors(inputs) if t.is_floating_point() or t.dtype == torch.uint8}
    if not weights or given <= weights:
        return ""
    mine, theirs = (", ".join(sorted(str(t).removeprefix("torch.") for t in types)) for types in (given, weights))
    return f" of {mine}, where its weights are {theirs}"


def shapes(inputs: Any) -> str:
    """`(1, 3, 224, 224)`, or the shapes of each tensor in a tuple or dict: for messages."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    return ", ".join(str(tuple(t.shape)) for t in tensors(inputs)) or type(inputs).__name__


def tensors(value: Any, depth: int = 8) -> list[Tensor]:
    """The tensors in a model's inputs or outputs, in order: opens containers, types known to pytree, plain objects."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or value is None or isinstance(value, str | bytes | int | float | complex | type | nn.Module):
        return []
    if isinstance(value, Mapping):
        items: Any = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        items = value
    elif (node := SUPPORTED_NODES.get(type(value))) is not None:  # a deque, a class that the caller registered
        items = node.flatten_fn(value)[0]
    else:
        items = getattr(value, "__dict__", {}).values()
    return [tensor for item in items for tensor in tensors(item, depth - 1)]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same inputs with every tensor replaced; containers other than tuple, list and dict stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def cloned(value: V) -> V:
    """The same arguments with tensors of their own: a model may write into its inputs."""
    copies: V = tree_map_only(Tensor, lambda t: t.detach().clone(), value)
    return copies


def has_lazy(model: nn.Module) -> bool:
    """Whether some layer still waits for its first input to know its sizes."""
    return any(_is_lazy(t) for t in (*model.parameters(), *model.buffers()))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; restores every parameter, buffer, mode and random generator afterwards.

    A module that changed or replaced one of its tensors gets its other attributes back, too: one may say that it did.
    """
    with put_back(model), torch.no_grad():
        to_eval_(model)
        yield


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """As `untouched`, but the mode and the gradients inside are the caller's: for trials of a training step."""
    states = [_State(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    held = {id(t): t for t in (*model.parameters(), *model.buffers()) if not (_is_lazy(t) or t.is_meta)}
    copies = [(t, t.detach().clone()) for t in held.values()]
    modes = _modes(model)
    try:
        with untouched_random():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        replaced = [state for state in states if state.put_back_()]
        written = {id(tensor) for tensor, before in copies if _put_back_(tensor, before)}
        for state in states:
            if state in replaced or state.holds(written):
                state.put_back_attributes_()


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """As `untouched`, for a run that hooks or dispatch modes look at: compiled parts run eagerly and skip no hook."""
    with untouched(model):
        if "torch._dynamo" not in sys.modules:
            yield
        else:
            with torch.compiler.set_stance("force_eager"):
                yield


@contextmanager
def untouched_random() -> Iterator[None]:
    """Restores the random generators of Python, NumPy and PyTorch afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 (the global state is the one that a model's own code draws from)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, set by the model's own `eval()`, for a model whose results count; restores each module's mode."""
    modes = _modes(model)
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def to_eval_(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Set eval mode flag by flag; returns each module's mode before.

    `model.eval()` may do more in a module that overrides it: some merge their weights.
    """
    modes = _modes(model)
    for module, _ in modes:
        module.training = False
    return modes


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(m, m.training) for m in model.modules() if isinstance(getattr(m, "training", None), bool)]


class _State:
    """What a module's names stand for: its parameters, buffers and plain attributes."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes = module.__dict__, dict(module.__dict__)
        registers: tuple[Any, ...] = module._parameters, module._buffers
        self._registers = [(each, dict(each)) for each in registers]

    def put_back_(self) -> bool:
        """Restore parameters and buffers under their names; whether one was added, removed or replaced."""
        changed = False
        for register, before in self._registers:
            if list(register) != list(before) or any(register[name] is not before[name] for name in before):
                changed = True
                register.clear()
                register.update(before)
        return changed

    def holds(self, ids: Collection[int]) -> bool:
        """Whether a parameter or buffer is among these."""
        return any(id(tensor) in ids for _, before in self._registers for tensor in before.values())

    def put_back_attributes_(self) -> None:
        now, before = self._attributes
        for name in now.keys() - before.keys():
            del now[name]
        now.update(before)


def _put_back_(tensor: Tensor, before: Tensor) -> bool:
    """Restore the numbers; whether they had changed.

    Through `.data`: no version counter moves, and autograd sees no write.
    """
    now = tensor.detach()
    try:
        same = torch.equal(now, before) or bool(((now == before) | (now.isnan() & before.isnan())).all())
    except (RuntimeError, TypeError):  # a sparse tensor, or a subclass that cannot be compared
        return False
    if not same:
        with torch.inference_mode():  # a tensor created in it changes in nothing else
            tensor.data.copy_(before)
    return not same


def _is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer)
