"""The activations that a primitive can end in, by name."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,  # exact, by the error function
}


def check_activation(name: str) -> None:
    """Raises BadInput for a name that is not one of ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise BadInput(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
