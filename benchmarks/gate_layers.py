"""What the gates of an untrained network do to its maps, layer by layer; `benchmarks/gate.py` runs it.

Of a layer's output y `N O P Q`, each channel over its own standard deviation (over samples and pixels), with M `N O`
the averages over the pixels, centred over the samples:

    between           share of the variance of y that is the variance of M: differences between samples, not pixels
    common            share of the variance of y that lies in the first principal component of M: one common mode
    rank              (Σ s²)² / Σ s⁴ of the singular values s of M: how many modes there are (participation ratio)
    cosine            mean cosine between the samples' activations after the norm and the ReLU that follow
    signal_to_noise   ‖mean gradient‖² / mean ‖gradient - mean gradient‖² of the layer's weights, over the batches

With d = mean a - mean b and g = sigmoid(d), the average of y is (mean a + mean b)/2 + e, e = d·(g - 1/2) >= 0. The
variants take the blend apart:

    full      the paper's gate: g·a + (1 - g)·b
    quiet     the same after `leanconv.nn.quiet_gates_`
    half      (a + b)/2
    average   (a + b)/2 + e: of the gate its effect on the average alone
    shape     the paper's gate less e: the rest of its effect
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.copies import copied
from leanconv.nn import SPConv2d, SPLConv2d, quiet_gates_
from leanconv.ops.gated_sum import gated_sum
from leanconv.runs import load


def _average(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / 2 + _excess(a, b)


def _shape(a: Tensor, b: Tensor) -> Tensor:
    return gated_sum(a, b) - _excess(a, b)


def _excess(a: Tensor, b: Tensor) -> Tensor:
    difference = a.mean((2, 3), keepdim=True) - b.mean((2, 3), keepdim=True)
    return difference * (torch.sigmoid(difference) - 0.5)


def tempered(strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a blend whose gate is sigmoid(strength · d)."""

    def blend(a: Tensor, b: Tensor) -> Tensor:
        difference = (a.sum((2, 3), keepdim=True) - b.sum((2, 3), keepdim=True)) / (a.shape[2] * a.shape[3])
        return torch.lerp(b, a, torch.sigmoid(strength * difference))

    return blend


@contextmanager
def blended(blend: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Within it, the layers of both operators blend so."""
    layers: tuple[Any, ...] = (SPConv2d, SPLConv2d)
    try:
        for layer in layers:
            layer._gated_sum = staticmethod(blend)
        yield
    finally:
        for layer in layers:
            layer._gated_sum = staticmethod(gated_sum)


def gates(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the mean of |g - 1/2| of every gated layer's g = sigmoid(d), over samples and channels of a batch.

    The norms take the batch's statistics, so that fresh and trained weights compare. The model is left as it is.
    """
    model = copied(model).train()
    found: dict[str, float] = {}
    names: list[str] = []
    for name, layer in model.named_modules():
        if isinstance(layer, (SPConv2d, SPLConv2d)):
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: names.append(name))

    def blend(a: Tensor, b: Tensor) -> Tensor:
        gate = torch.sigmoid(a.mean((2, 3)) - b.mean((2, 3)))
        found[names[-1]] = float((gate - 0.5).abs().mean())
        return gated_sum(a, b)

    with blended(blend), torch.no_grad():
        model(images)
    return found


VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "full": gated_sum, "quiet": gated_sum, "half": tempered(0.0), "average": _average, "shape": _shape,
}  # fmt: skip


def measure(reference: str, task: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Return the figures of every gated layer of a network, for each variant of its gate, the same weights in all."""
    rows = []
    for variant, blend in VARIANTS.items():
        torch.manual_seed(0)
        model = load(reference).train().to(memory_format=torch.channels_last)
        if variant == "quiet":
            quiet_gates_(model)
        with blended(blend):
            figures = _layers(model, task, batches)
        last = list(figures)[-1]
        rows += [
            {"network": reference, "variant": variant, "layer": name, "last": name == last, **found}
            for name, found in figures.items()
        ]
    return rows


def _layers(
    model: nn.Module, task: Any, batches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, float | None]]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (SPConv2d, SPLConv2d))}
    found: dict[str, dict[str, float | None]] = {}
    hooks = [layer.register_forward_hook(_recorder(found, name)) for name, layer in layers.items()]
    gradients: dict[str, list[Tensor]] = {name: [] for name in layers}
    for images, truth in batches:
        model.zero_grad()
        task.loss(model(images.contiguous(memory_format=torch.channels_last)), truth).backward()
        for hook in hooks:  # the first batch is enough
            hook.remove()
        for name, layer in layers.items():
            weights = [p.grad.flatten() for p in layer.parameters() if p.ndim > 1 and p.grad is not None]
            gradients[name].append(torch.cat(weights))
    for name, each in gradients.items():
        stacked = torch.stack(each)
        noise = (stacked - stacked.mean(0)).square().sum(1).mean()
        ratio = float(stacked.mean(0).square().sum() / noise) if len(each) > 1 else None
        found[name]["signal_to_noise"] = ratio
    return found


def _recorder(found: dict[str, dict[str, float | None]], name: str) -> Callable[..., None]:
    def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        found[name] = {**spread(output.detach())}

    return record


def spread(y: Tensor) -> dict[str, float]:
    """Return between, common, rank and cosine of a map `N O P Q`, as the head of this file defines them."""
    y = y.double()
    y = (y - y.mean((0, 2, 3), keepdim=True)) / y.std((0, 2, 3), correction=0, keepdim=True)
    values = torch.linalg.svdvals(y.mean((2, 3))).square()
    rays = F.normalize(y.relu().flatten(1), dim=1)
    between = values.sum() / y.shape[0] / y.shape[1]
    cosines = (rays.sum(0).square().sum() - len(rays)) / (len(rays) * (len(rays) - 1))
    return {
        "between": float(between), "common": float(between * values[0] / values.sum()),
        "rank": float(values.sum().square() / values.square().sum()), "cosine": float(cosines),
    }  # fmt: skip
