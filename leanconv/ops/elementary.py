"""Activations of float32 in elementary steps of a fixed order: every machine and every kernel gives the same bits.

A step is one addition, multiplication, division, comparison or rounding to a whole number (ties to even), each rounded
to float32 by itself; no product is fused with a sum. `kernels/cpu/runtime/elementary.h` has the same steps in C.
They are for quantized maps: within 2e-7 of the largest value, which 8 bits do not see.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SIXTH = float(torch.tensor(1.0 / 6.0))
_ROOT_HALF = float(torch.tensor(0.5).sqrt())
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)  # Abramowitz and Stegun, 7.1.26
_ERF_STEP = 0.3275911


def exp(x: Tensor) -> Tensor:
    """e^x of float32, within two units in the last place; outside of [-87, 88] that of the nearer end."""
    x = x.clamp(-87.0, 88.0)
    turns = torch.round(x * _LOG2_E)
    rest = (x - turns * _LN2_HIGH) - turns * _LN2_LOW
    value = torch.full_like(x, _EXP[0])
    for coefficient in _EXP[1:]:
        value = value * rest + coefficient
    value = (value * rest) * rest + rest + 1.0
    return value * ((turns.to(torch.int32) + 127) << 23).view(torch.float32)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + exp(-x))


def gelu(x: Tensor) -> Tensor:
    """x/2 · (1 + erf(x/√2)), erf within 5e-7."""
    z = x * _ROOT_HALF
    size = z.abs()
    t = 1.0 / (1.0 + size * _ERF_STEP)
    value = torch.full_like(x, _ERF[0])
    for coefficient in _ERF[1:]:
        value = value * t + coefficient
    erf = 1.0 - (value * t) * exp(-(size * size))
    return (x * 0.5) * (1.0 + torch.where(z < 0, -erf, erf))


ELEMENTARY: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": lambda x: x.clamp_min(0.0),
    "relu6": lambda x: x.clamp(0.0, 6.0),
    "silu": lambda x: x * sigmoid(x),
    "hardswish": lambda x: (x * (x + 3.0).clamp(0.0, 6.0)) * SIXTH,
    "hardsigmoid": lambda x: (x + 3.0).clamp(0.0, 6.0) * SIXTH,
    "sigmoid": sigmoid,
    "gelu": gelu,
}
