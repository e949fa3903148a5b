"""The module inside a model's wrappers; the shape and memory format of its inputs."""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.running import tensors


def first_shape(value: Any) -> tuple[int, ...]:
    """The shape of the first tensor in nested tuples, lists and dicts; `()` where there is none."""
    found = tensors(value)
    return tuple(found[0].shape) if found else ()


def main_input(inputs: Any) -> Tensor:
    """The first tensor of the inputs; tables of times state its dtype, device and shape."""
    found = tensors(inputs)
    if not found:
        raise BadInput(f"inputs hold no tensor: {type(inputs).__name__}; give a tensor, a tuple of them, or a dict")
    return found[0]


def layout_of(x: Tensor) -> str:
    """The memory format of an `N C H W`: "channels_last", "contiguous" (also if empty) or "strided"."""
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
    """The plain module to count; for an optimised model, its original."""
    model = bare(model)
    if getattr(type(model), "optimized_by_leanconv", False):
        return bare(model.original)  # type: ignore[arg-type]
    return model
