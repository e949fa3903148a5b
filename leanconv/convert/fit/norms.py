"""BatchNorm statistics of a swapped network: those behind a new layer at once, all behind the first one in the end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from leanconv.convert.absorb import is_norm
from leanconv.convert.fit.refine import Example
from leanconv.convert.fit.twin import Twin
from leanconv.convert.tree import walk
from leanconv.running import Inputs, call, tensors

Statistics = tuple[Tensor, Tensor]  # running mean and variance, one number a channel


def statistics(norm: nn.Module) -> Statistics | None:
    """The running statistics themselves; None where the norm keeps none."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    return (mean, var) if isinstance(mean, Tensor) and isinstance(var, Tensor) else None


@torch.no_grad()
def set_statistics_(norm: nn.Module, layer: Callable[..., Tensor], examples: Sequence[Example]) -> None:
    """Give the norm the mean and variance of the layer's outputs on these examples, per channel."""
    held = statistics(norm)
    if held is None:
        return
    count, total, squares = 0, 0.0, 0.0
    origin = held[0].double()
    for each in examples:
        y = each.run(layer).double().transpose(0, 1).flatten(1) - origin[:, None]
        count += y.shape[1]
        total, squares = total + y.sum(1), squares + y.square().sum(1)
    mean = cast(Tensor, total) / count
    held[0].copy_(origin + mean)
    held[1].copy_((cast(Tensor, squares) / count - mean.square()).clamp_min(0.0))


@torch.no_grad()
def output_error(twin: Twin, batches: Iterable[Inputs]) -> float:
    """‖copy - original‖ / ‖original‖ over all numbers that the network returns."""
    difference = scale = 0.0
    for batch in batches:
        theirs = [t.double().clone() for t in tensors(call(twin.original, batch)) if t.is_floating_point()]
        ours = [t.double() for t in tensors(call(twin.copy, twin.inputs(batch))) if t.is_floating_point()]
        difference += sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
        scale += sum(float(b.square().sum()) for b in theirs)
    return (difference / scale) ** 0.5 if scale else (0.0 if not difference else float("inf"))


@torch.no_grad()
def recalibrate_(twin: Twin, norms: Sequence[nn.Module], batches: Iterator[Inputs]) -> None:
    """One pass over the batches: these norms of the copy get the mean statistics of what they read."""
    with _averaging(norms):
        for batch in batches:
            call(twin.copy, twin.inputs(batch))


def behind(twin: Twin, layers: set[int], batch: Inputs) -> list[nn.Module]:
    """The norms of the copy that run after the first of these layers (ids), with running statistics."""
    order: list[nn.Module] = []
    watched = [m for m in twin.copy.modules() if id(m) in layers or (is_norm(m) and statistics(m) is not None)]
    handles = [m.register_forward_hook(lambda module, *_: order.append(module)) for m in watched]
    try:
        with torch.no_grad():
            call(twin.copy, twin.inputs(batch))
    finally:
        for handle in handles:
            handle.remove()
    first = next((place for place, module in enumerate(order) if id(module) in layers), len(order))
    host = {id(site.module) for site in walk(twin.copy)}  # the norms inside an operator are its own
    plain = (m for m in order[first:] if id(m) in host and isinstance(m, nn.modules.batchnorm._BatchNorm))
    return list(dict.fromkeys(plain))


@contextmanager
def _averaging(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Training mode for these norms alone, and a plain mean over the batches in place of a moving one."""
    found = [cast(nn.BatchNorm2d, norm) for norm in norms]
    momenta = [norm.momentum for norm in found]
    try:
        for norm in found:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        yield
    finally:
        for norm, momentum in zip(found, momenta, strict=True):
            norm.momentum, norm.training = momentum, False
