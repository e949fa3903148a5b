"""A fold tried before it is done: on a copy of the model whose BatchNorms are random, in float64 where that runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.agreement import Error, compare, incomparable
from leanconv.convert.absorb import folded, perform, tail
from leanconv.convert.tree import walk
from leanconv.copies import copied
from leanconv.errors import BadInput
from leanconv.probes import resampled
from leanconv.running import Inputs, call, map_tensors, tensors, watched

# Largest relative error a certificate may show: rounding grows with depth, a wrong fold is off by 0.1 and more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 5e-2  # bfloat16 and float16, for models that run in nothing else


@dataclass(frozen=True)
class Step:
    """A fold that may be done: indices into `walk(model)`, the same in the model and in its copy."""

    layer: int
    norm: int | None


class Trial:
    """A copy of the model in which every BatchNorm is random: what holds here is algebra, not luck."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        try:
            self._prepare(model, inputs, torch.float64)
        except BadInput:  # a model that casts by itself, or a device without float64, runs in its own dtype
            self._prepare(model, inputs, None)
        if not any(t.numel() for t in self.reference):
            raise BadInput("the model returned no tensor with elements on these inputs: no fold can be certified")
        if not any(bool((t == t).any()) for t in self.reference):
            raise BadInput("the model returned nothing but NaN on these inputs: no fold can be certified")

    def _prepare(self, model: nn.Module, inputs: Inputs, dtype: torch.dtype | None) -> None:
        self.model = copied(model)
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        if dtype is not None:
            try:
                self.model.to(dtype)
            except (TypeError, RuntimeError) as error:
                raise BadInput(f"the model does not go to {dtype}: {error}") from error
            inputs = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
        used = dtype or own
        self.dtype_name, self.tolerance = str(used).removeprefix("torch."), TOLERANCE.get(used, _COARSE)
        self.inputs, self.sites = [inputs], list(walk(self.model))
        _randomise_(self.model)
        self.reference = self._run()
        self._try_others(inputs)

    def _try_others(self, inputs: Inputs) -> None:
        """Random inputs beside the given ones, which may be all zeros: where the model runs on them."""
        dice = torch.Generator().manual_seed(21)
        self.inputs.append(map_tensors(lambda t: resampled(t, t.shape, dice), inputs))
        try:
            self.reference = self._run()
        except BadInput:
            del self.inputs[1:]

    def _run(self) -> list[Tensor]:
        """The outputs on all inputs, one after the other."""
        with watched(self.model):
            return [t.detach().clone() for each in self.inputs for t in tensors(call(self.model, each))]

    def compare(self) -> Error:
        """The outputs now against those before any fold."""
        try:
            now = self._run()
        except BadInput as error:
            return incomparable(str(error))
        return compare(self.reference, now, self.tolerance)

    def certify(self, steps: list[Step]) -> dict[Step, Error | str]:
        """Each fold's error at its own place, from one run of the unfolded copy, or why it has none."""
        results: dict[Step, Error | str] = {}
        handles = []
        for step in steps:
            layer = self.sites[step.layer].module
            norm = None if step.norm is None else self.sites[step.norm].module
            new = cast(nn.Module, folded(layer, norm))  # `_candidates` saw that there is one
            results[step] = "never reached"
            handles.extend(_comparing(results, step, layer, norm, new, self.tolerance))
        try:
            self._run()
        finally:
            for handle in handles:
                handle.remove()
        return results

    def admit(self, steps: list[Step]) -> set[Step]:
        """Fold here what leaves the outputs alone, all at once if that goes; halves of it where it does not."""
        if not steps:
            return set()
        undo = [perform(self.sites[s.layer], None if s.norm is None else self.sites[s.norm]) for s in steps]
        if self.compare().passes:
            return set(steps)
        for each in reversed(undo):
            each()
        middle = len(steps) // 2
        return self.admit(steps[:middle]) | self.admit(steps[middle:]) if middle else set()


def _comparing(
    results: dict[Step, Error | str],
    step: Step,
    layer: nn.Module,
    norm: nn.Module | None,
    new: nn.Module,
    tolerance: float,
) -> list[Any]:
    """Hooks that feed the folded layer what the layer is fed, and compare where the normalisation returns."""
    held: list[Tensor] = []

    def note(expected: Tensor, given: Tensor) -> None:
        seen, before = compare([expected], [given], tolerance), results[step]
        results[step] = seen if isinstance(before, str) else max(before, seen, key=lambda error: error.excess)

    def after_layer(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
        try:
            held.append(new(*arguments, **named))
        except (RuntimeError, TypeError, ValueError) as error:
            results[step] = f"the folded layer does not run: {str(error).splitlines()[0][:120]}"
            return
        if norm is None:
            note(output, held.pop())

    def after_norm(module: nn.Module, arguments: Any, output: Tensor) -> None:
        if held:
            note(output, tail(module)(held.pop()))

    handles = [layer.register_forward_hook(cast(Callable[..., Any], after_layer), with_kwargs=True)]
    return handles if norm is None else [*handles, norm.register_forward_hook(after_norm)]


@torch.no_grad()
def _randomise_(model: nn.Module) -> None:
    """Random statistics and affine for every BatchNorm, inside operators too; from a generator of its own."""
    dice = torch.Generator().manual_seed(20)
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
            continue
        mean.copy_(torch.randn(mean.shape, generator=dice) * 0.3)
        var.copy_(torch.rand(var.shape, generator=dice) * 1.5 + 0.5)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor):
            weight.copy_(torch.rand(weight.shape, generator=dice) + 0.5)
        if isinstance(bias, Tensor):
            bias.copy_(torch.randn(bias.shape, generator=dice) * 0.3)
