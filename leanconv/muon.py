"""Muon: steps of weight matrices with their singular values made equal; AdamW for all other parameters.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; sizes of steps as in Liu et al. 2025,
arXiv:2502.16982: the root mean square of a step is AdamW's, so that both take one learning rate. PyTorch's own
`torch.optim.Muon` takes parameters of two axes alone; a convolution's weight is a matrix of a row for each filter here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the source's quintic iteration
_ITERATIONS = 5
RMS = 0.2  # of a step at a rate of 1: that of AdamW's steps, as the second source measured them
_LEAST = 1e-7


class Muon(torch.optim.AdamW):
    """AdamW; groups with `matrices=True` are stepped by Muon, with Nesterov's momentum.

    Args:
        params: parameters or groups of them, as of every optimizer.
        momentum: of matrices.
    """

    def __init__(self, params: Any, lr: float, *, momentum: float = 0.95, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, **kwargs)
        own = {"matrices": False, "momentum": momentum}
        self.defaults |= own  # of groups that are added later
        self.param_groups[:] = [own | group for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes the loss and the gradients once more, and is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [p for group in self.param_groups if group["matrices"] for p in self._step(group)]
        grads = [p.grad for p in moved]
        for p in moved:
            p.grad = None  # AdamW leaves a parameter without gradient alone
        try:
            super().step()
        finally:
            for p, grad in zip(moved, grads, strict=True):
                p.grad = grad
        return loss

    def _step(self, group: dict[str, Any]) -> list[Tensor]:
        """Step the matrices of a group: those that have a gradient."""
        moved = [p for p in group["params"] if p.grad is not None]
        for p in moved:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = None
            state["step"] += 1
            mean = state["exp_avg"].lerp_(p.grad, 1 - group["momentum"])
            update = orthogonal(p.grad.lerp(mean, group["momentum"]).flatten(1))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-group["lr"] * RMS * max(update.shape) ** 0.5)
        return moved


def is_matrix(parameter: Tensor) -> bool:
    """Whether it has a row for each filter, of several channels: `O C R S`, `O C`. Depthwise filters have one.

    Complex ones are left to AdamW.
    """
    return parameter.ndim in (2, 4) and parameter.shape[1] > 1 and not parameter.is_complex()


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix `M N` with its singular values moved to between .7 and 1.2, by Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp_min(_LEAST)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T
