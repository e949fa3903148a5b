"""Random inputs to try a form on, made like a given one: the same values again, and pictures that are harder.

Zero-mean noise hides what large offsets show: E[x²] - E[x]² is exact enough for noise, and nothing is left of it for a
bright picture of low contrast.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Offset and spread, in root mean squares of the given values; "like" keeps their own mean and spread.
LIKE = "like the given"
KINDS = {LIKE: None, "low contrast": (100.0, 0.1), "offset": (10.0, 1.0), "large": (0.0, 1000.0), "small": (0.0, 1e-3)}


def resampled(tensor: Tensor, shape: Sequence[int], generator: torch.Generator, kind: str = LIKE) -> Tensor:
    """A random tensor of another shape, its values of a kind: normal for floats, else drawn from `tensor`."""
    shape = tuple(shape)
    if tensor.is_floating_point():
        mean, spread = _mean_and_spread(tensor)
        if (how := KINDS[kind]) is not None:
            size = math.hypot(mean, spread)
            mean, spread = size * how[0], size * how[1]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + mean
        return drawn.to(tensor.device, tensor.dtype)
    flat = tensor.detach().flatten().cpu()
    index = torch.randint(0, max(1, flat.numel()), shape, generator=generator)
    return flat[index].to(tensor.device)


def _mean_and_spread(tensor: Tensor) -> tuple[float, float]:
    """Of the finite values; 0 and 1 where they are all the same, which says nothing about the spread."""
    values = tensor.detach().double()
    values = values[values.isfinite()]
    spread = float(values.std(correction=0)) if values.numel() else 0.0
    return (float(values.mean()), spread) if spread > 0 else (0.0, 1.0)
