"""A start for the softmax gates of SPConv and SPLConv, which stop the learning of a network of fresh weights.

Of a blend y = g·a + (1 - g)·b with d = mean a - mean b and g = sigmoid(d) the average is

    mean y = (mean a + mean b)/2 + e,   e = d·(g - 1/2) = d²/4 - … >= 0

The gate adds e to every channel of a sample, never below 0, and large where the sample is far from the average one, say
bright. The next layer sees a mode that all channels share, so its own d is larger, and the mode grows from layer to
layer (`benchmarks/gate.py` measures it). BatchNorm divides by a deviation that is mostly this mode's.

e falls with the square of the branches' scale σ, the rest of y with σ itself. So both branches start at σ = 1/10, and
the norm that follows the layer takes the factor away. This is an initialisation and nothing else: the operator is the
paper's from the first step to the last, and training moves σ as it moves any weight. Source: ours.
"""

from typing import Any

import torch
from torch import nn

from leanconv.nn.spconv import SPConv2d
from leanconv.nn.splconv import SPLConv2d

SCALE = 0.1


def has_gates(layer: nn.Module) -> bool:
    """Whether a layer blends branches by softmax gates."""
    return isinstance(layer, (SPConv2d, SPLConv2d))


@torch.no_grad()
def quiet_gates_(model: nn.Module, scale: float = SCALE) -> int:
    """Start the branches of every SPConv and SPLConv at a scale where their gates are near one half; before training.

    For layers that a norm follows, as in all networks here.

    Returns: the number of layers.
    """
    layers: list[Any] = [m for m in model.modules() if has_gates(m)]
    for layer in layers:
        norms = (layer.norm,) if isinstance(layer, SPLConv2d) else (layer.norm1, layer.norm2)
        for norm in norms:
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.mul_(scale)
                norm.bias.mul_(scale)
        if isinstance(norms[-1], nn.Identity) or isinstance(layer, SPLConv2d):  # a branch without a norm
            layer.plain.weight.mul_(scale)
            if layer.plain.bias is not None:
                layer.plain.bias.mul_(scale)
    return len(layers)
