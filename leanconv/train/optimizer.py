"""SGD, AdamW or Muon, and the learning rate as a function of the step alone, without state."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.muon import Muon, is_matrix
from leanconv.train.recipe import Recipe


@dataclass(frozen=True)
class Kept:
    """An optimizer's state for a parameter: a tensor of its shape (None if `optional`), or its number of steps.

    Values of `squares` are never below 0.
    """

    like: bool
    optional: bool = False
    squares: bool = False

    def why_not(self, value: Any, parameter: Tensor, steps: int) -> str | None:
        """Why a value cannot be this state after that many steps; None if it can."""
        if not self.like:
            number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            right = type(number) in (int, float) and 0 < number <= steps and number == int(number)
            return None if right else f"must be a number of steps, from 1 to {steps}"
        if value is None and self.optional:
            return None
        if not isinstance(value, Tensor) or value.shape != parameter.shape or value.dtype != parameter.dtype:
            return f"must be {str(parameter.dtype).removeprefix('torch.')} of size {tuple(parameter.shape)}"
        if self.squares and (value < 0).any():
            return "is below 0"
        return "is not a number" if value.isnan().any() else None


KEPT: dict[type[torch.optim.Optimizer], dict[str, Kept]] = {
    torch.optim.AdamW: {
        "step": Kept(like=False),
        "exp_avg": Kept(like=True),
        "exp_avg_sq": Kept(like=True, squares=True),
    },
    Muon: {
        "step": Kept(like=False),
        "exp_avg": Kept(like=True),
        "exp_avg_sq": Kept(like=True, optional=True, squares=True),
    },
    torch.optim.SGD: {"momentum_buffer": Kept(like=True, optional=True)},
}


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer. Biases and norms (parameters of one axis) have no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "muon":
        return Muon(_with_matrices(model, groups), lr=recipe.lr)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def _with_matrices(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups once more, the matrices that Muon steps apart from the others.

    A linear layer's rows, which score classes or weigh channels, are among the others, as are words of an embedding and
    a norm's numbers for a map's pixels.
    """
    found = {
        id(p)
        for module in model.modules()
        if not isinstance(module, (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm))
        for p in module.parameters(recurse=False)
        if is_matrix(p)
    }
    made = [
        {**group, "params": [p for p in group["params"] if (id(p) in found) == matrices], "matrices": matrices}
        for group in groups
        for matrices in (True, False)
    ]
    return [group for group in made if group["params"]]


def rate_at(step: int, total: int, recipe: Recipe, per_epoch: int = 1) -> float:
    """The learning rate of a step (0 ... total - 1): linear warm-up, then the schedule, down to 0 after the last.

    `step` falls by whole epochs of `per_epoch` steps, not to 0.
    """
    warm = int(recipe.warmup) if recipe.warmup >= 1 else round(recipe.warmup * total)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    if recipe.schedule == "step":
        return float(recipe.lr * recipe.drop ** recipe.falls(step // per_epoch))
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "poly": (1 - done) ** 0.9, "constant": 1.0}
    return recipe.lr * share[recipe.schedule]
