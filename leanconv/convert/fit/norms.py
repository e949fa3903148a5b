"""BatchNorm statistics of a swapped network: those behind a new layer at once, all behind the first one in the end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert.absorb import is_norm
from leanconv.convert.fit.refine import Example
from leanconv.convert.fit.twin import Twin
from leanconv.running import Inputs, call, tensors

NUMBERS = ("running_mean", "running_var", "weight", "bias")  # of a norm, that a fit may change
Statistics = tuple[Tensor, Tensor]  # running mean and variance, one number a channel


def statistics(norm: nn.Module) -> Statistics | None:
    """The running statistics themselves; None where the norm keeps none."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    return (mean, var) if isinstance(mean, Tensor) and isinstance(var, Tensor) else None


def affine(norms: Iterable[nn.Module], *, within: nn.Module) -> list[nn.Parameter]:
    """The weights and biases of these norms, as far as they are parameters of `within`."""
    own = {id(p) for p in within.parameters()}
    found = {id(p): p for norm in norms for p in norm.parameters(recurse=False) if id(p) in own}
    return list(found.values())


class Spread:
    """The mean and variance of each channel, summed in float64 around the first batch's means."""

    def __init__(self) -> None:
        self.count = 0
        self.origin, self.total, self.squares = (torch.zeros(0, dtype=torch.float64) for _ in range(3))

    def add_(self, y: Tensor) -> None:
        """Add `N C ...`."""
        rows = y.detach().double().transpose(0, 1).flatten(1)  # C pixels
        if not self.count:
            self.origin = rows.mean(1)
            self.total, self.squares = torch.zeros_like(self.origin), torch.zeros_like(self.origin)
        rows = rows - self.origin[:, None]
        self.count += rows.shape[1]
        self.total += rows.sum(1)
        self.squares += rows.square().sum(1)

    def found(self) -> Statistics:
        """Mean and variance."""
        mean = self.total / self.count
        return self.origin + mean, (self.squares / self.count - mean.square()).clamp_min(0.0)


@torch.no_grad()
def carry_over_(
    norm: nn.Module, original: nn.Module, old: Spread, new: Spread, *, factor: Tensor | None = None
) -> None:
    """Change the norm's statistics from the original's by as much as its inputs differ on the same images.

    So a layer that gives what the old one gave changes nothing, whatever images these are. With the variance weak
    channels become as loud as they were, and so does their error.

    Args:
        factor: of each channel, by which the new inputs are meant to differ: the best for the squared error. None: as
            their variance differs.
    """
    held, kept = statistics(norm), statistics(original)
    if held is None or kept is None or not (old.count and new.count):
        return
    (mean, var), (new_mean, new_var) = old.found(), new.found()
    tiny = 1e-12 * float(var.mean()) + 1e-30
    ratio = ((new_var + tiny) / (var + tiny)).clamp(0.0, 100.0)
    ratio = ratio if factor is None else factor.to(ratio).square()
    held[0].copy_((kept[0].double() - mean) * ratio.sqrt() + new_mean)
    eps = float(getattr(norm, "eps", 0.0))  # what the norm divides by changes with the inputs, eps with them
    held[1].copy_(((kept[1].double() + eps) * ratio - eps).clamp_min(0.0))


def difference(layer: Callable[..., Tensor], examples: Sequence[Example], factor: Tensor) -> Tensor:
    """By how much the layer's mean outputs are above the targets' times a factor, `C`."""
    old, new = spreads(layer, examples)
    return new.found()[0] - factor.to(new.total) * old.found()[0]


@torch.no_grad()
def spreads(layer: Callable[..., Tensor], examples: Sequence[Example]) -> tuple[Spread, Spread]:
    """Those of the targets, and of the layer's outputs."""
    old, new = Spread(), Spread()
    for each in examples:
        old.add_(each.target)
        new.add_(each.run(layer))
    return old, new


def set_statistics_(
    norm: nn.Module, original: nn.Module, layer: Callable[..., Tensor], examples: Sequence[Example], factor: Tensor
) -> None:
    """Give the norm behind a new layer the statistics of its outputs, from those of the old one on the same inputs.

    `factor`: by which the outputs are meant to differ.
    """
    carry_over_(norm, original, *spreads(layer, examples), factor=factor)


@torch.no_grad()
def output_error(twin: Twin, batches: Iterable[Inputs]) -> float:
    """‖copy - original‖ / ‖original‖ over all numbers that the network returns."""
    difference = scale = 0.0
    for batch in batches:
        theirs = [t.double().clone() for t in tensors(call(twin.original, batch)) if t.is_floating_point()]
        ours = [t.double() for t in tensors(twin.run(batch)) if t.is_floating_point()]
        difference += sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
        scale += sum(float(b.square().sum()) for b in theirs)
    return (difference / scale) ** 0.5 if scale else (0.0 if not difference else float("inf"))


@torch.no_grad()
def recalibrate_(twin: Twin, norms: Sequence[tuple[nn.Module, nn.Module]], batches: Iterator[Inputs]) -> None:
    """One pass of both networks over the batches: these norms (original's, copy's) get what their inputs show."""
    spreads = {norm: Spread() for pair in norms for norm in pair}

    def hook(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        spreads[norm].add_(arguments[0])

    handles = [norm.register_forward_pre_hook(hook) for norm in spreads]
    try:
        for batch in batches:
            call(twin.original, batch)
            twin.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    for original, norm in norms:
        carry_over_(norm, original, spreads[original], spreads[norm])


@torch.no_grad()
def spreads_of(twin: Twin, norms: Sequence[nn.Module], batches: Iterator[Inputs], most: int) -> dict[nn.Module, Spread]:
    """What these norms of the copy see on some `most` images."""
    found = {norm: Spread() for norm in norms}

    def hook(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        found[norm].add_(arguments[0])

    handles = [norm.register_forward_pre_hook(hook) for norm in found]
    images = 0
    try:
        for batch in batches:
            twin.run(batch)
            images += next((len(t) for t in tensors(batch) if t.ndim), 1)
            if images >= most:
                break
    finally:
        for handle in handles:
            handle.remove()
    return found


def behind(twin: Twin, layers: set[int], batch: Inputs) -> list[tuple[nn.Module, nn.Module]]:
    """The norms (original's, copy's) that run after the first of these layers (ids), with running statistics."""
    norms = {id(site.module): old for old, site in twin.places.items() if is_norm(old) and statistics(old) is not None}
    order: list[nn.Module] = []
    seen = [m for m in twin.copy.modules() if id(m) in layers or id(m) in norms]
    handles = [m.register_forward_hook(lambda module, *_: order.append(module)) for m in seen]
    try:
        with torch.no_grad():
            twin.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    first = next((place for place, module in enumerate(order) if id(module) in layers), len(order))
    return [(norms[id(m)], m) for m in dict.fromkeys(order[first:]) if id(m) in norms]
