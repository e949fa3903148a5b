"""fold_: exact algebra for eval mode, each fold with a certificate."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.convert.absorb import absorbs, folded, is_norm, norm_obstacle, perform, tail
from leanconv.convert.adjacency import watch
from leanconv.convert.observe import Inputs, call, map_tensors, tensors_in, undisturbed
from leanconv.convert.tree import Site, has_computed_weight, has_hooks, tied_parameters, walk
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.table import table

# Largest relative difference a certificate may show: rounding grows with depth, a wrong fold is off by 0.1 and more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 5e-2  # bfloat16 and float16, for models that run in nothing else


@dataclass(frozen=True)
class Fold:
    """One fold, done or refused.

    Attributes:
        layer: the layer that absorbs, or the normalisation that stays.
        what: what goes into it.
        certificate: max |after - before| / max |before| at the layer, with BatchNorm statistics and affine randomised,
            in `FoldReport.dtype`; None where it was not measured.
        reason: why it was not done; empty where it was.
    """

    layer: str
    what: str
    certificate: float | None
    reason: str = ""


@dataclass(frozen=True)
class FoldReport:
    """What `fold_` did. `certificate`: the model's outputs after all folds against before, measured the same way."""

    folds: tuple[Fold, ...]
    certificate: float | None
    dtype: str

    @property
    def done(self) -> list[Fold]:
        return [fold for fold in self.folds if not fold.reason]

    @property
    def refused(self) -> list[Fold]:
        return [fold for fold in self.folds if fold.reason]

    def __len__(self) -> int:
        return len(self.done)

    def __str__(self) -> str:
        rows = [
            [f.layer, f.what, "-" if f.certificate is None else f"{f.certificate:.1e}", f.reason or "done"]
            for f in self.folds
        ]  # fmt: skip
        if not rows:
            return "nothing to fold"
        note = f"{len(self.done)} folded, {len(self.refused)} not"
        if self.certificate is not None:
            note += f"; outputs of the whole model differ by {self.certificate:.1e} relative"
            note += f" ({self.dtype}, BatchNorm randomised)"
        return table(["layer", "absorbs", "certificate", "outcome"], rows, note=note)

    def to_dict(self) -> dict[str, Any]:
        return {"folds": [asdict(f) for f in self.folds], "certificate": self.certificate, "dtype": self.dtype}


@dataclass(frozen=True)
class _Step:
    """A fold that may be done: indices into `walk(model)`, the same in the model and in its copy."""

    layer: int
    norm: int | None


def fold_(model: nn.Module, inputs: Inputs) -> FoldReport:
    """Fold what eval mode lets be folded, in place: BatchNorm into the layer before it, operators into cheaper forms.

    Which layer feeds which BatchNorm is observed by running the model on `inputs`: the layer's output must be read by
    that BatchNorm and by nothing else. Every fold is tried first on a copy in float64 with random BatchNorm statistics
    and affine; one that changes an output there is not done, and listed. Folded parts cannot be trained as before.
    What is observed and certified is the path that `inputs` take; for a branch that other inputs take nothing vouches.

    Raises: BadInput in training mode, or where the model does not run on `inputs`.
    """
    _check_eval(model)
    sites = list(walk(model))
    steps, refused = _candidates(model, inputs, sites)
    if not steps:
        return FoldReport(tuple(refused), None, "")
    trial = _Trial(model, inputs)
    certificates = trial.certify(steps)
    passed = []
    for step in steps:
        certificate = certificates[step]
        if isinstance(certificate, float) and certificate <= trial.tolerance:
            passed.append(step)
        else:
            text = certificate if isinstance(certificate, str) else "its certificate fails"
            refused.append(_line(sites, step, certificate if isinstance(certificate, float) else None, text))
    admitted = trial.admit(passed)
    done = []
    for step in passed:
        certificate = cast(float, certificates[step])
        if step in admitted:
            perform(sites[step.layer], None if step.norm is None else sites[step.norm])
            done.append(_line(sites, step, certificate, ""))
        else:
            refused.append(_line(sites, step, certificate, "the outputs of the model would change"))
    return FoldReport((*done, *refused), trial.compare() if done else None, trial.dtype_name)


def _check_eval(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "training", False):
            where = f"its layer {name!r}" if name and not model.training else "the model"
            raise BadInput(f"fold_ needs eval mode, and {where} is in training mode; call model.eval() first")


def _line(sites: list[Site], step: _Step, certificate: float | None, reason: str) -> Fold:
    layer = sites[step.layer]
    if step.norm is None:
        return Fold(layer.name, f"{cast(Operator, layer.module).name}'s own algebra", certificate, reason)
    norm = sites[step.norm]
    return Fold(layer.name, f"{type(norm.module).__name__} {norm.name}", certificate, reason)


def _candidates(model: nn.Module, inputs: Inputs, sites: list[Site]) -> tuple[list[_Step], list[Fold]]:
    """The folds that observation allows, in the order of the model, and the normalisations that stay."""
    index = {id(site.module): i for i, site in enumerate(sites)}
    layers = [site.module for site in sites if absorbs(site.module)]
    norms = [site for site in sites if is_norm(site.module)]
    seen, tied = watch(model, inputs, layers, [site.module for site in norms]), tied_parameters(model)
    steps, refused = [], []
    for site in norms:
        reason = norm_obstacle(site.module) or _touched(site.module, tied) or seen.why_not(site.module)
        source = seen.inputs.get(site.module)
        if reason is None and source is not None:
            before = sites[index[id(source.layer)]]
            reason = _layer_obstacle(before.module, tied)
            if reason is None and folded(before.module, site.module) is None:
                reason = "the layer before it cannot absorb it exactly, or would overflow its dtype"
            if reason is None:
                steps.append(_Step(index[id(source.layer)], index[id(site.module)]))
                continue
        refused.append(Fold(site.name, type(site.module).__name__, None, str(reason)))
    taken = {step.layer for step in steps}
    for i, site in enumerate(sites):
        if isinstance(site.module, Operator) and i not in taken and site.holders and not _touched(site.module, tied):
            twin = copy.deepcopy(site.module)
            if seen.calls.get(site.module) and twin.fold() is not twin:
                steps.append(_Step(i, None))
    return sorted(steps, key=lambda step: step.layer), refused


def _layer_obstacle(layer: nn.Module, tied: set[int]) -> str | None:
    if not isinstance(layer, Operator) and has_computed_weight(layer):
        return "the weight of the layer before it is parametrized"
    reason = _touched(layer, tied)
    return f"the layer before it: {reason}" if reason else None


def _touched(module: nn.Module, tied: set[int]) -> str | None:
    if has_hooks(module):
        return "has hooks"
    return "tied weight" if any(id(p) in tied for p in module.parameters()) else None


class _Trial:
    """A copy of the model in which every BatchNorm is random: what holds here is algebra, not luck."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        try:
            self._prepare(model, inputs, torch.float64)
        except BadInput:  # a model that casts by itself, or a device without float64, runs in its own dtype
            self._prepare(model, inputs, None)
        if not any(t.numel() for t in self.reference):
            raise BadInput("the model returned no tensor with elements on these inputs: no fold can be certified")

    def _prepare(self, model: nn.Module, inputs: Inputs, dtype: torch.dtype | None) -> None:
        try:
            self.model = copy.deepcopy(model)
        except Exception as error:
            raise BadInput(f"the model cannot be copied, so no fold can be certified: {error}") from error
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        if dtype is not None:
            try:
                self.model.to(dtype)
            except (TypeError, RuntimeError) as error:
                raise BadInput(f"the model does not go to {dtype}: {error}") from error
            inputs = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
        used = dtype or own
        self.dtype_name, self.tolerance = str(used).removeprefix("torch."), TOLERANCE.get(used, _COARSE)
        self.inputs, self.sites = inputs, list(walk(self.model))
        _randomise_(self.model)
        self.reference = self._run()

    def _run(self) -> list[Tensor]:
        with undisturbed(self.model):
            return [t.detach().clone() for t in tensors_in(call(self.model, self.inputs))]

    def compare(self) -> float:
        """The outputs now against those before any fold; infinite where they no longer compare."""
        try:
            now = self._run()
        except BadInput:
            return float("inf")
        if len(now) != len(self.reference):
            return float("inf")
        return max(_relative(a, b) for a, b in zip(now, self.reference, strict=True))

    def certify(self, steps: list[_Step]) -> dict[_Step, float | str]:
        """Per fold its error at the place of the fold, from one run of the unfolded copy, or why it has none."""
        results: dict[_Step, float | str] = {}
        handles = []
        for step in steps:
            layer = self.sites[step.layer].module
            norm = None if step.norm is None else self.sites[step.norm].module
            new = cast(nn.Module, folded(layer, norm))  # `_candidates` saw that there is one
            results[step] = "never reached"
            handles.extend(_comparing(results, step, layer, norm, new))
        try:
            self._run()
        finally:
            for handle in handles:
                handle.remove()
        return results

    def admit(self, steps: list[_Step]) -> set[_Step]:
        """Fold here what leaves the outputs alone, all at once if that goes; halves of it where it does not."""
        if not steps:
            return set()
        undo = [perform(self.sites[s.layer], None if s.norm is None else self.sites[s.norm]) for s in steps]
        if self.compare() <= self.tolerance:
            return set(steps)
        for each in reversed(undo):
            each()
        middle = len(steps) // 2
        return self.admit(steps[:middle]) | self.admit(steps[middle:]) if middle else set()


def _comparing(
    results: dict[_Step, float | str], step: _Step, layer: nn.Module, norm: nn.Module | None, new: nn.Module
) -> list[Any]:
    """Hooks that feed the folded layer what the layer is fed, and compare where the normalisation returns."""
    held: list[Tensor] = []

    def after_layer(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
        try:
            held.append(new(*arguments, **named))
        except (RuntimeError, TypeError, ValueError) as error:
            results[step] = f"the folded layer does not run: {str(error).splitlines()[0][:120]}"
            return
        if norm is None:
            results[step] = _relative(held.pop(), output)

    def after_norm(module: nn.Module, arguments: Any, output: Tensor) -> None:
        if held:
            results[step] = _relative(tail(module)(held.pop()), output)

    handles = [layer.register_forward_hook(cast(Callable[..., Any], after_layer), with_kwargs=True)]
    return handles if norm is None else [*handles, norm.register_forward_hook(after_norm)]


def _relative(value: Tensor, expected: Tensor) -> float:
    """max |value - expected| / max |expected|; infinite where they differ in shape or are not finite."""
    if value.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = float((value.double() - expected.double()).abs().max())
    largest = float(expected.double().abs().max())
    error = difference / largest if largest else difference
    return error if error == error else float("inf")


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
