"""Running a model in order to look at it, and leaving it exactly as it was."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from leanconv.errors import BadInput, LeanconvError, error_line

# A tensor is the only argument, a tuple or list the positional ones, a dict the named ones.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; afterwards every parameter, buffer, mode and random generator is as before.

    The modes are set flag by flag: `model.eval()` may do more in a module that overrides it (merge its weights, say).
    """
    modules = [m for m in model.modules() if isinstance(getattr(m, "training", None), bool)]
    modes = [m.training for m in modules]
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    registers: list[tuple[Any, dict[str, Any]]] = [
        (each, dict(each)) for m in plain for each in (m._parameters, m._buffers)
    ]
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if not _is_empty_shell(t)}
    copies = [(t, t.detach().clone()) for t in tensors.values()]
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # a compiled part must neither compile now nor skip our hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for register, entries in registers:
                register.clear()
                register.update(entries)
            for tensor, before in copies:
                if not torch.equal(tensor.detach(), before):
                    tensor.data.copy_(before)
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            random.setstate(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002


def _is_empty_shell(tensor: Tensor) -> bool:
    """Nothing to keep: a lazy layer's parameter, or a tensor on the meta device."""
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer) or tensor.is_meta


def has_lazy(model: nn.Module) -> bool:
    """Whether some layer still waits for its first input to know its sizes."""
    return any(
        isinstance(t, UninitializedParameter | UninitializedBuffer) for t in (*model.parameters(), *model.buffers())
    )


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model(inputs)`, `model(*inputs)` or `model(**inputs)`. Raises BadInput where the model does not take them."""
    arguments, named = _arguments(inputs)
    try:
        return model(*arguments, **named)
    except LeanconvError:
        raise
    except Exception as error:
        raise BadInput(f"the model does not run on inputs {shapes(inputs)}: {error_line(error)}") from error


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
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


def shapes(inputs: Any) -> str:
    """`(1, 3, 224, 224)`, or the shapes of each tensor in a tuple or dict: for messages."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    return ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs)) or type(inputs).__name__


def tensors_in(value: Any, depth: int = 8) -> list[Tensor]:
    """The tensors in a model's inputs or outputs, in order: tuples, lists, dicts and plain objects are opened."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or value is None or isinstance(value, str | bytes | int | float | complex | type | nn.Module):
        return []
    if isinstance(value, Mapping):
        items: Any = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        items = value
    else:
        items = getattr(value, "__dict__", {}).values()
    return [tensor for item in items for tensor in tensors_in(item, depth - 1)]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same inputs with every tensor replaced; containers other than tuple, list and dict stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map_tensors(function, item) for item in value)
    return value
