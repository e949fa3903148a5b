"""The activations that a node can end in, in PyTorch; "" is none."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}  # fmt: skip

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_, "sigmoid": torch.sigmoid_, "silu": partial(F.silu, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True), "hardsigmoid": partial(F.hardsigmoid, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
}  # fmt: skip


def activate(x: Tensor, act: str) -> Tensor:
    """The activation of that name; `x` itself for ""."""
    return ACTIVATIONS[act](x) if act else x
