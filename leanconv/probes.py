"""Random inputs to verify a form on, drawn from the statistics of a given one: similar values and harder ones.

Large offsets show errors that zero-mean noise hides. E[x²] - E[x]² is accurate for noise, but cancels completely for a
bright picture of low contrast.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Offset and spread, in root mean squares of the given values. LIKE keeps their mean and spread.
LIKE = "like the given"
KINDS = {LIKE: None, "low contrast": (100.0, 0.1), "offset": (10.0, 1.0), "large": (0.0, 1000.0), "small": (0.0, 1e-3)}


def resampled(tensor: Tensor, shape: Sequence[int], generator: torch.Generator, kind: str = LIKE) -> Tensor:
    """Return a random tensor of `shape`: normal with the kind's statistics for floats, else drawn from `tensor`."""
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
    """Return mean and spread of the finite values, or 0 and 1 if all are equal and show no spread."""
    values = tensor.detach().double()
    values = values[values.isfinite()]
    spread = float(values.std(correction=0)) if values.numel() else 0.0
    return (float(values.mean()), spread) if spread > 0 else (0.0, 1.0)
