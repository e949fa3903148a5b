"""Running somebody's model without leaving a trace: eval mode, no gradients, everything as it was afterwards."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.errors import BadInput


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How `inputs` reach a model: a tuple or list as positions, a dict as keywords, anything else as one argument."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def run(model: Callable[..., Any], inputs: Any) -> Any:
    """The model's answer to `inputs`."""
    positional, keywords = arguments(inputs)
    return model(*positional, **keywords)


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def first_shape(value: Any) -> tuple[int, ...]:
    """The shape of the first tensor in nested tuples, lists and dicts; `()` where there is none."""
    found = tensors(value)
    return tuple(found[0].shape) if found else ()


def main_input(inputs: Any) -> Tensor:
    """The first tensor of the inputs: its dtype, device and shape are what a table of times states."""
    found = tensors(inputs)
    if not found:
        raise BadInput(f"inputs hold no tensor: {type(inputs).__name__}; give a tensor, a tuple of them, or a dict")
    return found[0]


def layout_of(x: Tensor) -> str:
    """ "channels_last" or "contiguous": how an `N C H W` lies in memory (an empty one is contiguous)."""
    if x.dim() == 4 and x.numel() and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "contiguous" if x.is_contiguous() else "strided"


def bare(model: nn.Module) -> nn.Module:
    """The model inside `DataParallel`, `DistributedDataParallel` or `torch.compile`."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's wrapper; its class lives in a module slow to import
            inner = model._modules["_orig_mod"]
            assert inner is not None
            model = inner
        else:
            return model


def countable(model: nn.Module) -> nn.Module:
    """The plain module whose operations say what a model needs: of an optimised one, the model it was made from."""
    model = bare(model)
    if getattr(type(model), "optimized_by_leanconv", False):
        return bare(model.original)  # type: ignore[arg-type]
    return model


@contextmanager
def untouched_random() -> Iterator[None]:
    """The random states of Python, numpy and torch are as before afterwards."""
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
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; outside, mode, buffers and the random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, {name: (b, None if b is None else b.detach().clone()) for name, b in module._buffers.items()})
        for module in model.modules()
        if module._buffers
    ]
    model.eval()
    try:
        with untouched_random(), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, saved in buffers:
                for name, (buffer, value) in saved.items():
                    module._buffers[name] = buffer
                    if buffer is not None and value is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)
