"""A few steps of Muon on the error at a layer's or block's output; the better of before and after is kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert.fit.twin import Arguments
from leanconv.muon import RMS, Muon, is_matrix
from leanconv.running import cloned, map_tensors, tensors

MEMORY = 96 * 2**20  # bytes of inputs and targets, kept to refine on
EXACT = 1e-5  # a relative error that is float32's rounding alone: nothing is left to fit
# Shares of a parameter's root mean square, at each step: of AdamW, and of Muon for matrices.
RATES = 0.01, 0.03
_PIXELS = 32 * 1024  # of one step's outputs


@dataclass(frozen=True)
class Example:
    """One call of a module: its arguments in the changed network, and what the original's returned there."""

    arguments: Arguments
    target: Tensor

    def run(self, module: Callable[..., Tensor]) -> Tensor:
        """The module's output on these arguments, which it may write into."""
        positional, named = cloned(self.arguments)
        return module(*positional, **named)

    def moved(self, factor: Tensor, shift: Tensor) -> "Example":
        """The same with the target's channels times a factor, plus a shift; each `C`."""
        factor, shift = (each.view(-1, *[1] * (self.target.ndim - 2)) for each in (factor, shift))
        return Example(self.arguments, (self.target.double() * factor + shift).to(self.target))

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(t.numel() * t.element_size() for t in (self.target, *tensors(self.arguments)))

    def parts(self, least: int = 1) -> list["Example"]:
        """The same in parts of some 32,000 pixels and `least` images or more: a step each.

        In one part where the tensors differ in their number of rows. The largest map counts, of input and output.
        """
        found = [self.target, *tensors(self.arguments)]
        rows = {t.shape[0] for t in found if t.ndim}
        pixels = max(math.prod(t.shape[2:]) for t in found)
        if len(rows) != 1:
            return [self]
        each = max(least, _PIXELS // max(1, pixels))
        return [self._rows(start, start + each) for start in range(0, rows.pop(), each)]

    def _rows(self, start: int, stop: int) -> "Example":
        positional, named = self.arguments
        cut: Arguments = (
            tuple(map_tensors(lambda t: t[start:stop], positional)),
            map_tensors(lambda t: t[start:stop], named),
        )
        return Example(cut, self.target[start:stop])


def error(module: Callable[..., Tensor], examples: Sequence[Example], *, scales: Tensor | None = None) -> float:
    """‖module - target‖ / ‖target‖ over all numbers.

    `scales`: as norms behind see it, which take away means and multiply each channel by its scale, `C`. It is then of
    the deviations from the channels' means, times their scales.
    """
    difference = size = 0.0
    with torch.no_grad():
        for each in examples:
            target = each.target.double()
            rest = each.run(module).double() - target
            if scales is not None:
                axes = [axis for axis in range(rest.ndim) if axis != 1]
                by = scales.double().view(-1, *[1] * (rest.ndim - 2))
                rest, target = (by * (x - x.mean(axes, keepdim=True)) for x in (rest, target))
            difference += float(rest.square().sum())
            size += float(target.square().sum())
    return (difference / size) ** 0.5 if size else (0.0 if not difference else float("inf"))


def divided(module: Callable[..., Tensor], factor: Tensor) -> Callable[..., Tensor]:
    """The module with each output channel divided by its factor, `C`."""

    def call(*positional: object, **named: object) -> Tensor:
        y = module(*positional, **named)
        return y.double() / factor.to(y.device).view(-1, *[1] * (y.ndim - 2))

    return call


def refine_(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    examples: Sequence[Example],
    held: Sequence[Example],
    steps: int,
    *,
    least: int = 1,
    rates: tuple[float, float] = RATES,
    varied: Callable[[Example], Example] | None = None,
) -> bool:
    """Move `parameters` so that `module` meets the targets of `examples`; whether that lowers the error on `held`.

    Muon, the step a share of each parameter's own size, sinking as a cosine; `least` images or more in each. Where it
    does not help, all is as before. An error of at most `EXACT` stays as it is.

    rates: the shares; of matrices the second.
    varied: gives another example in place of each, at each step.
    """
    before = [p.detach().clone() for p in parameters]
    best, examples = error(module, held), [part for each in examples for part in each.parts(least)]
    if best <= EXACT:
        return False
    scale = sum(float(e.target.double().square().mean()) for e in examples) / len(examples)
    groups = [_group(p, rates) for p in parameters]
    optimizer = Muon(groups, lr=rates[0], momentum=0.9, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    states = [p.requires_grad for p in parameters]
    try:
        with torch.enable_grad():
            for p in parameters:
                p.requires_grad_(True)
            for step in range(steps):
                each = examples[step % len(examples)]
                each = varied(each) if varied else each
                rest = each.run(module) - each.target
                loss = rest.square().mean() / (scale or 1.0)
                if not loss.requires_grad:  # no way from the output to the parameters: under no_grad, by argmax
                    return False
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        for p, state in zip(parameters, states, strict=True):
            p.requires_grad_(state)
            p.grad = None
    after = error(module, held)
    if after < best:
        return True
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    return False


def _group(parameter: nn.Parameter, rates: tuple[float, float]) -> dict[str, Any]:
    matrix = is_matrix(parameter)
    rate = rates[1] / RMS if matrix else rates[0]
    return {"params": [parameter], "lr": rate * _size(parameter), "matrices": matrix}


def _size(parameter: Tensor) -> float:
    """The root mean square; a parameter that is all zero moves as one of size 0.1."""
    return float(parameter.detach().double().square().mean().sqrt()) or 0.1


def settle_norms_(module: nn.Module, examples: Sequence[Example]) -> None:
    """Give the BatchNorms inside an operator the statistics of these inputs."""
    inner = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not inner:
        return
    kept = [(m, m.momentum) for m in inner]
    for m in inner:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over all batches
        m.training = True
    try:
        with torch.no_grad():
            for each in examples:
                each.run(module)
    except ValueError:  # one image whose map is one pixel has no variance: the statistics stay those of a new layer
        for m in inner:
            m.reset_running_stats()
    finally:
        for m, momentum in kept:
            m.momentum, m.training = momentum, False


def as_type(target: Tensor, arguments: object) -> Tensor:
    """The target in the type in which the copy computes."""
    found = next((t.dtype for t in tensors(arguments) if t.is_floating_point()), target.dtype)
    return target.to(found)
