"""fold_: exact algebra for eval mode, each fold with a certificate."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn

from leanconv.agreement import Error
from leanconv.convert.absorb import absorbs, folded, is_norm, norm_obstacle, perform
from leanconv.convert.adjacency import Watch, watch
from leanconv.convert.smaller import smaller
from leanconv.convert.tree import Site, has_computed_weight, has_hooks, tied_parameters, walk
from leanconv.convert.trial import Step, Trial
from leanconv.copies import copied
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.running import Inputs
from leanconv.table import table


@dataclass(frozen=True)
class Fold:
    """One fold, done or refused.

    Attributes:
        layer: the layer that absorbs, or the normalisation that stays.
        what: what goes into it.
        certificate: the largest error at the layer, as a share of its channel's or group's size (`leanconv.agreement`).
            Measured in `FoldReport.dtype` with randomised BatchNorm statistics and affine; None if not measured.
        allowed: the largest certificate that passes; None if not measured.
        reason: why it was not done; empty where it was.
    """

    layer: str
    what: str
    certificate: float | None
    allowed: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class FoldReport:
    """What `fold_` did. `certificate`: the model's outputs after all folds against before, measured the same way."""

    folds: tuple[Fold, ...]
    certificate: float | None
    dtype: str
    allowed: float | None = None

    @property
    def done(self) -> list[Fold]:
        return [fold for fold in self.folds if not fold.reason]

    @property
    def refused(self) -> list[Fold]:
        return [fold for fold in self.folds if fold.reason]

    def __len__(self) -> int:
        return len(self.done)

    def __str__(self) -> str:
        rows = [[f.layer, f.what, _number(f.certificate), _number(f.allowed), f.reason or "done"] for f in self.folds]
        if not rows:
            return "nothing to fold"
        note = f"{len(self.done)} folded, {len(self.refused)} not"
        if self.certificate is not None:
            note += f"; outputs of the whole model differ by {self.certificate:.1e} relative"
            note += f", {_number(self.allowed)} is allowed ({self.dtype}, BatchNorm randomised)"
        return table(["layer", "absorbs", "certificate", "allowed", "outcome"], rows, note=note)

    def to_dict(self) -> dict[str, Any]:
        whole = {"certificate": self.certificate, "allowed": self.allowed, "dtype": self.dtype}
        return {"folds": [asdict(f) for f in self.folds], **whole}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def fold_(model: nn.Module, inputs: Inputs) -> FoldReport:
    """Fold what eval mode lets be folded, in place: BatchNorm into the layer before it, operators into cheaper forms.

    Which layer feeds which BatchNorm is observed by running the model on `inputs`: the layer's output must be read by
    that BatchNorm and by nothing else. Every fold is tried first on a copy in float64 with random BatchNorm statistics
    and affine; one that changes an output there is not done, and listed. For this, images are cut to some 64 pixels if
    the model runs the same operators on them. Folded parts cannot be trained as before.
    What is observed and certified is the path that `inputs` take; for a branch that other inputs take nothing vouches.

    Raises: BadInput in training mode, or where the model does not run on `inputs`.
    """
    _check_eval(model)
    sites = list(walk(model))
    seen = _observed(model, inputs, sites)
    steps, refused = _candidates(model, sites, seen)
    if not steps:
        return FoldReport(tuple(refused), None, "")
    less = smaller(model, inputs, seen.path)
    trial = Trial(model, inputs if less is None else less)
    certificates = trial.certify(steps)
    passed = []
    for step in steps:
        shown = certificates[step]
        if isinstance(shown, str):
            refused.append(_line(sites, step, None, shown))
        elif shown.passes:
            passed.append(step)
        else:
            refused.append(_line(sites, step, shown, "its certificate fails"))
    admitted = trial.admit(passed)
    done = []
    for step in passed:
        certificate = cast(Error, certificates[step])
        if step in admitted:
            perform(sites[step.layer], None if step.norm is None else sites[step.norm])
            done.append(_line(sites, step, certificate, ""))
        else:
            refused.append(_line(sites, step, certificate, "the outputs of the model would change"))
    whole = trial.compare() if done else None
    return FoldReport(
        (*done, *refused), whole.relative if whole else None, trial.dtype_name, whole.allowed if whole else None
    )


def _check_eval(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "training", False):
            where = f"its layer {name!r}" if name and not model.training else "the model"
            raise BadInput(f"fold_ needs eval mode, and {where} is in training mode; call model.eval() first")


def _line(sites: list[Site], step: Step, seen: Error | None, reason: str) -> Fold:
    layer = sites[step.layer]
    certificate, allowed = (None, None) if seen is None else (seen.relative, seen.allowed)
    if step.norm is None:
        return Fold(layer.name, f"{cast(Operator, layer.module).name}'s own algebra", certificate, allowed, reason)
    norm = sites[step.norm]
    return Fold(layer.name, f"{type(norm.module).__name__} {norm.name}", certificate, allowed, reason)


def _observed(model: nn.Module, inputs: Inputs, sites: list[Site]) -> Watch:
    """One run of the model on `inputs`, watched."""
    modules = [site.module for site in sites]
    return watch(model, inputs, list(filter(absorbs, modules)), list(filter(is_norm, modules)))


def _candidates(model: nn.Module, sites: list[Site], seen: Watch) -> tuple[list[Step], list[Fold]]:
    """The folds that observation allows, in the order of the model, and the normalisations that stay."""
    index = {id(site.module): i for i, site in enumerate(sites)}
    norms = [site for site in sites if is_norm(site.module)]
    tied = tied_parameters(model)
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
                steps.append(Step(index[id(source.layer)], index[id(site.module)]))
                continue
        refused.append(Fold(site.name, type(site.module).__name__, None, reason=str(reason)))
    taken = {step.layer for step in steps}
    for i, site in enumerate(sites):
        if isinstance(site.module, Operator) and i not in taken and site.holders and not _touched(site.module, tied):
            twin = copied(site.module)
            if seen.calls.get(site.module) and twin.fold() is not twin:
                steps.append(Step(i, None))
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
