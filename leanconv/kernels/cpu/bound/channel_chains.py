"""Channel chains of a separable form: neighbouring channels of one input that pass the same stencils throughout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from leanconv.kernels.cpu.pipelines.packing import pack_taps
from leanconv.ops.forms import Stencil
from leanconv.ops.separable import Separable


@dataclass(frozen=True)
class ChannelChain:
    """One chain of a form.

    Args:
        index, first, channels: the slice of an input that it reads.
        stencils: with `first` 0 and the chain's own `channels`.
        taken: for each stencil its stage, its place in the stage, and the chain's first channel among its channels.
    """

    index: int
    first: int
    channels: int
    stencils: tuple[Stencil, ...] = ()
    taken: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Parts:
    """A separable form with its weights, by chain.

    Attributes:
        taps: for each chain the packed taps and biases of its stencils.
        project, bias: of the 1×1, `O M` and `O`; None where there is none.
    """

    form: Separable
    chains: list[ChannelChain]
    taps: list[list[Tensor]]
    project: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, form: Separable, weights: Sequence[Tensor]) -> Self:
        chains = channel_chains(form)
        stencils, project, bias = split_weights(form, weights)
        taps = [chain_weights(chain, stencils) for chain in chains]
        return cls(form, chains, taps, *(None if w is None else w.detach().float() for w in (project, bias)))


def channel_chains(form: Separable) -> list[ChannelChain]:
    """The chains, in the order of the channels after the last stage."""
    found = [ChannelChain(index, 0, channels) for index, channels in enumerate(form.channels)]
    for number, stage in enumerate(form.stages):
        following = []
        for place, stencil in enumerate(stage):
            at, end = 0, stencil.first + stencil.channels
            for chain in found:
                low, high = max(at, stencil.first), min(at + chain.channels, end)
                if low < high:
                    following.append(_cut(chain, low - at, high - low, stencil, (number, place, low - stencil.first)))
                at += chain.channels
        found = following
    return found


def _cut(chain: ChannelChain, skip: int, channels: int, stencil: Stencil, taken: tuple[int, int, int]) -> ChannelChain:
    before = tuple((stage, place, at + skip) for stage, place, at in chain.taken)
    own = tuple(replace(s, channels=channels) for s in chain.stencils)
    return ChannelChain(
        chain.index,
        chain.first + skip,
        channels,
        (*own, replace(stencil, first=0, channels=channels)),
        (*before, taken),
    )


def split_weights(
    form: Separable, weights: Sequence[Tensor]
) -> tuple[dict[tuple[int, int], tuple[Tensor | None, Tensor | None]], Tensor | None, Tensor | None]:
    """Taps and bias by (stage, place), then the 1×1 `O M` and its bias."""
    left, stencils = list(weights), {}
    for number, stage in enumerate(form.stages):
        for place, stencil in enumerate(stage):
            taps = None if stencil.identity else left.pop(0)
            stencils[number, place] = taps, left.pop(0) if stencil.bias else None
    if form.out_channels is None:
        return stencils, None, None
    project = left.pop(0).reshape(form.out_channels, form.middle)
    return stencils, project, left.pop(0) if form.bias else None


def chain_weights(
    chain: ChannelChain, stencils: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]]
) -> list[Tensor]:
    """The packed taps and biases of a chain, in the order of its kernel's arguments."""
    packed = []
    for form, (stage, place, at) in zip(chain.stencils, chain.taken, strict=True):
        taps, bias = stencils[stage, place]
        if taps is not None:
            packed.append(pack_taps(taps.detach().float()[at : at + form.channels]))
        if bias is not None:
            whole = torch.zeros(-(-form.channels // 16) * 16, dtype=torch.float32)
            whole[: form.channels] = bias.detach().float()[at : at + form.channels]
            packed.append(whole)
    return packed
