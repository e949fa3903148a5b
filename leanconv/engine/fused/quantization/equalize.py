"""Equalization inside a separable block: channels of unlike size share one scale, so the small ones are made larger.

A stencil's channel c is multiplied by f_c, and what reads it is divided by f_c: the block computes the same
(Nagel et al. 2019, arXiv:1906.04721, eq. 9). It holds where nothing but ReLU stands between. r_c is a channel's size.

    f_c = max r / r_c           where a stencil follows: its weights have a scale for each channel, and lose nothing
    f_c = (max r / r_c)^(1/2)   where the 1×1 follows: one scale for a row of its weights, which lose what the map gains
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.ops.separable import Separable

LINEAR = ("none", "relu")  # activations that a positive factor passes through
MOST = 1e3  # times that a channel is made larger


def equalized(form: Separable, weights: Sequence[Tensor], sizes: Sequence[Tensor]) -> list[Tensor]:
    """Weights of the same block. `sizes`: of each channel of each map that `inside` gives, `C` each."""
    left, sizes = [w.clone() for w in weights], list(sizes)
    before, at = torch.ones(sum(form.channels), dtype=left[0].dtype), 0  # factors of the map that is read
    last = len(form.stages) - (form.out_channels is None)
    for index, stage in enumerate(form.stages):
        after = []
        for s in stage:
            read = before[s.first : s.first + s.channels]
            size = sizes.pop(0) if index < last else None
            if s.identity:
                after.append(read)
                continue
            made = torch.ones_like(read)
            if size is not None and s.activation in LINEAR:
                made = _factors(size, 1.0 if index + 1 < len(form.stages) else 0.5).to(read)
            left[at] *= (made / read).view(-1, *[1] * (left[at].dim() - 1))
            if s.bias:
                left[at + 1] *= made
            at += 1 + s.bias
            after.append(made)
        before = torch.cat(after)
    if form.out_channels is not None:
        left[at] /= before.view(-1, *[1] * (left[at].dim() - 2))
    return left


def _factors(size: Tensor, power: float) -> Tensor:
    largest = size.amax()
    return (largest / size.clamp(min=float(largest) / MOST)).pow(power) if float(largest) > 0 else torch.ones_like(size)
