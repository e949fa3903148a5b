"""Swaps tried on a copy: which candidates fit each layer, one layer's harm, a network with a plan applied."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leanconv.convert import Plan, Swap, apply_, plan
from leanconv.convert import apply as applying
from leanconv.copies import copied
from leanconv.errors import BadInput, UnsupportedConv
from leanconv.registry import parse, unparse
from leanconv.running import Inputs, untouched_random

# Trials are fitted layer by layer and block by block alone: the network as a whole takes minutes, for each of them.
WHOLE_STEPS = 0
DENSE = "conv"  # the layer as it is, among the choices
# What a CPU runs well and trained weights carry over to, from the least change to the largest.
CANDIDATES = (
    "hetconv(part=2)", "hetconv(part=4)", "group_pointwise(part=4)", "depthwise_separable(multiplier=4)",
    "depthwise_separable(multiplier=3)", "depthwise_separable(multiplier=2)", "depthwise_separable", "splconv",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One convolution: its line where it stays, and candidate -> its line where it is swapped."""

    name: str
    kept: Swap
    swaps: Mapping[str, Swap]


def inits() -> tuple[str, ...]:
    """The ways in which `apply_` makes the new weights."""
    return tuple(applying.INITS)


def candidate_names(candidates: Sequence[str] | None) -> list[str]:
    """Checked operator strings without repeats. Raises UnknownName, BadInput for what is no list of operators."""
    if candidates is None:
        return list(CANDIDATES)
    if isinstance(candidates, str):
        candidates = [candidates]
    names = list(dict.fromkeys(unparse(*parse(each)) for each in candidates))
    names = [name for name in names if name != DENSE]
    if not names:
        raise BadInput("candidates is empty: give operator strings, such as 'hetconv(part=4)'; dense is always one")
    return names


def layers_of(model: nn.Module, inputs: Inputs, candidates: Sequence[str], where: Any) -> list[Layer]:
    """Every convolution of the model with the candidates that `plan` swaps it to.

    Raises: BadInput where no candidate fits any layer.
    """
    plans = {to: plan(model, inputs, to=to, where=where) for to in candidates}
    first = next(iter(plans.values()))
    layers = []
    for place, line in enumerate(first):
        lines = {to: found[place] for to, found in plans.items()}
        # The first reason why a candidate does not fit stands for all; a layer that is swapped by one has none of them.
        kept = next((each for each in lines.values() if each.to is None), None)
        kept = kept or Swap(line.name, None, line.before, None, "", line.spec, line.calls)
        layers.append(Layer(line.name, kept, {to: each for to, each in lines.items() if each.to is not None}))
    if not any(layer.swaps for layer in layers):
        why = ", ".join(f"{count} {reason}" for reason, count in first.reasons().items())
        raise BadInput(f"no candidate fits a layer of this model ({why or 'it has no convolution'}); see lc.plan")
    return layers


class Trials:
    """Swapped copies of one model, their weights made by `init` from the calibration inputs (`WHOLE_STEPS`).

    Attributes: failures: what could not be swapped or run, one line each.
    """

    def __init__(self, model: nn.Module, init: str, batches: Sequence[Any], seed: int) -> None:
        self._model, self.init, self._batches, self._seed = model, init, list(batches), seed
        self.failures: list[str] = []

    def swapped(self, swaps: Sequence[Swap], *, init: str | None = None) -> nn.Module:
        """A copy in eval mode with these lines applied. Fresh weights depend on the seed and the lines alone.

        Raises: BadInput, UnsupportedConv where a layer cannot be swapped.
        """
        made, init = copied(self._model), init or self.init
        text = ";".join(f"{swap.name}={swap.to}" for swap in swaps)
        with untouched_random():
            torch.manual_seed(zlib.crc32(text.encode()) ^ self._seed)
            named: dict[str, Any] = {}
            if init == "fit":
                named = {"data": self._batches, "progress": False, "whole_steps": WHOLE_STEPS}
            apply_(made, Plan(swaps), init=init, **named)
        return made

    def harm(self, swaps: Sequence[Swap], harm: Callable[[nn.Module], float]) -> float:
        """The harm of these lines together; infinite where a swap cannot be done or the result does not run."""
        try:
            return harm(self.swapped(swaps))
        except (BadInput, UnsupportedConv) as error:
            self.failures.append(f"{', '.join(f'{swap.name} as {swap.to}' for swap in swaps[:3])}: {error}")
            return float("inf")
