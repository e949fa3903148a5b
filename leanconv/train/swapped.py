"""The recipe's `swap`, `where` and `pretrained`: a model of any library, with operators in place of convolutions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert import Plan, apply_, plan
from leanconv.errors import BadInput
from leanconv.nn import quiet_gates_
from leanconv.registry import parse
from leanconv.runs.kinds import Reference, read
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe

_PUBLISHED = ("timm", "smp")
_MOST_HELD = 2**30


def check_swap(recipe: Recipe) -> None:
    """Raise UnknownName or BadInput for a swap that no model could have, before anything is read or built."""
    if recipe.swap:
        parse(recipe.swap)
    elif recipe.where:
        raise BadInput(f"recipe: where={recipe.where[:80]!r} is of no use without swap: say swap=depthwise_separable")
    elif recipe.init != "project":
        raise BadInput(
            f"recipe: init={recipe.init} is of swapped layers: say swap=depthwise_separable, or leave it out"
        )


def with_weights(reference: Reference, recipe: Recipe) -> Reference:
    """The reference, with `pretrained=true` if the recipe says so. Raises BadInput where there are no such weights."""
    if not recipe.pretrained:
        return reference
    if reference.kind not in _PUBLISHED:
        raise BadInput(
            f"recipe: pretrained=true, and {reference.text!r} has no published weights: take a model of timm or smp "
            "(model=smp:Unet?encoder_name=resnet18), or pretrained=false"
        )
    return replace(reference, options={**reference.options, "pretrained": True})


class Calibration:
    """The images that `init="fit"` looks at, once for each layer: training batches as the first steps see them.

    They are held in memory up to _MOST_HELD bytes, and read again in each pass beyond.

    Args:
        batch_at: gives the batch of a step, its images first.
        steps: how many batches.
    """

    def __init__(self, batch_at: Callable[[int], Any], steps: int, device: torch.device) -> None:
        self._batch_at, self._steps, self.device = batch_at, steps, device
        self._held: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self._steps):
            images = self._held.get(step)
            if images is None:
                images = self._batch_at(step)[0].to(self.device)
                if images.nbytes * self._steps <= _MOST_HELD:
                    self._held[step] = images
            yield images


def swap_(
    net: nn.Module, recipe: Recipe, calibration: Calibration | None = None, report: Reporter | None = None
) -> Plan:
    """Swap the recipe's layers in place. The new ones start as its `init` says.

    Softmax gates start quiet, unless trained weights say where they stand.

    Args:
        calibration: for `init="fit"`.
        report: shows each layer's error of a fit.
    Returns: the plan on one image of `recipe.size`; empty without `swap`.
    Raises: BadInput where no layer changes, or `where` matches none.
    """
    if not recipe.swap:
        return Plan([])
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    found = plan(
        net, torch.zeros(1, 3, recipe.size, recipe.size, device=device), to=recipe.swap, where=recipe.where or None
    )
    if not found.swapped:
        kept = ", ".join(f"{count} {reason}" for reason, count in found.reasons().items())
        raise BadInput(
            f"recipe: swap={recipe.swap} changes none of {len(found)} convolutions ({kept}): see leanconv plan"
        )
    fitted = recipe.init == "fit"
    visible = report is not None and report.visible
    applied = apply_(net, found, init=recipe.init, data=calibration if fitted else None, progress=visible)
    if fitted and report is not None:
        report.say(str(applied))
    if recipe.quiet_gates:  # those of the new layers alone: the others are quiet already, or trained
        trained = read(recipe.model).kind == "path" or recipe.pretrained
        new = [layer.name for layer in applied.layers if layer.how == "fresh" or not (trained or fitted)]
        quiet_gates_(nn.ModuleList(net.get_submodule(name) for name in new))
    return found
