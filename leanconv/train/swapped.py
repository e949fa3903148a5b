"""The recipe's `swap`, `where` and `pretrained`: a model of any library, with operators in place of convolutions."""

from dataclasses import replace

import torch
from torch import nn

from leanconv.convert import Plan, apply_, plan
from leanconv.errors import BadInput
from leanconv.registry import parse
from leanconv.runs.kinds import Reference
from leanconv.train.recipe import Recipe

_PUBLISHED = ("timm", "smp")


def check_swap(recipe: Recipe) -> None:
    """Raise UnknownName or BadInput for a swap that no model could have, before anything is read or built."""
    if recipe.swap:
        parse(recipe.swap)
    elif recipe.where:
        raise BadInput(f"recipe: where={recipe.where[:80]!r} is of no use without swap: say swap=depthwise_separable")


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


def swap_(net: nn.Module, recipe: Recipe) -> Plan:
    """Swap the recipe's layers in place. What a closed form can take over of the weights, it does.

    Returns: the plan on one image of `recipe.size`; empty without `swap`.
    Raises: BadInput where no layer changes, or `where` matches none.
    """
    if not recipe.swap:
        return Plan([])
    found = plan(net, torch.zeros(1, 3, recipe.size, recipe.size), to=recipe.swap, where=recipe.where or None)
    if not found.swapped:
        kept = ", ".join(f"{count} {reason}" for reason, count in found.reasons().items())
        raise BadInput(
            f"recipe: swap={recipe.swap} changes none of {len(found)} convolutions ({kept}): see leanconv plan"
        )
    apply_(net, found)
    return found
