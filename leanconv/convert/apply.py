"""apply_: swap the layers of a plan in place, all or none, and be able to take it back."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.convert.optimizer import Regrouped, regroup_
from leanconv.convert.swap import Plan, Swap
from leanconv.convert.tree import Site, convolutions, move_hooks
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.registry import get, nearest, parse
from leanconv.running import Inputs, call, watched
from leanconv.spec import ConvSpec
from leanconv.table import table

INITS = ("project", "fresh")


@dataclass(frozen=True)
class Layer:
    """One layer: `how` is "projected" or "fresh", `error` its relative output error where that was measured."""

    name: str
    to: str
    how: str
    error: float | None


@dataclass
class _Pending:
    """One swap that is ready: the old module and where it stands, the new one, and the sums for its output error."""

    swap: Swap
    site: Site
    new: Operator
    how: str
    difference: float = 0.0
    scale: float = 0.0
    measured: bool = False

    def error(self) -> float | None:
        """‖new - old‖ / ‖old‖ over all outputs of all calls (the square sums are kept)."""
        if not self.measured:
            return None
        return (self.difference / self.scale) ** 0.5 if self.scale else (0.0 if not self.difference else float("inf"))


class Applied:
    """What `apply_` did, layer by layer; `undo_` takes it back."""

    def __init__(self, pending: list[_Pending], regrouped: Regrouped | None) -> None:
        self.layers = tuple(Layer(p.swap.name, str(p.swap.to), p.how, p.error()) for p in pending)
        self._pending: list[_Pending] | None = pending
        self._regrouped = regrouped

    def undo_(self) -> None:
        """Put the old modules back, the very objects with the very weights, and the optimizer's groups and state.

        Training after the swap is lost with the new layers. Raises BadInput the second time, and where a new layer is
        no longer in its place (folded, or swapped again): undo what came later first, or keep a copy.
        """
        if self._pending is None:
            raise BadInput("this swap was already undone")
        for each in self._pending:
            if any(parent._modules.get(key) is not each.new for parent, key in each.site.holders):
                raise BadInput(f"{each.swap.name!r} was replaced or folded after this swap, which cannot be undone now")
        for each in self._pending:
            each.site.module.train(each.new.training)
            each.site.replace(each.site.module)
        if self._regrouped is not None:
            self._regrouped.undo_()
        self._pending = None

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        rows = [[i.name, i.to, i.how, "-" if i.error is None else f"{i.error:.3g}"] for i in self.layers]
        fresh = sum(i.how == "fresh" for i in self.layers)
        note = f"{len(self)} layers swapped, {len(self) - fresh} projected from the old weights, {fresh} fresh"
        if self.layers and all(i.error is None for i in self.layers):
            note += "; pass data= to see each layer's relative output error"
        return table(["layer", "to", "weights", "output error"], rows, note=note)

    def __repr__(self) -> str:
        return f"Applied({len(self)} layers)"

    def to_dict(self) -> dict[str, Any]:
        return {"layers": [asdict(layer) for layer in self.layers]}


def apply_(
    model: nn.Module, plan: Iterable[Swap], *, init: str = "project", data: Inputs | None = None, optimizer: Any = None
) -> Applied:
    """Swap the layers of `plan` in `model`, in place. Everything is checked and built before anything is changed.

    The new layer has the old one's device, dtype, memory format, mode and forward hooks; a frozen layer stays frozen.

    Args:
        init: "project" takes over what a closed form can of the trained weights, the rest is fresh; "fresh": all fresh.
        data: inputs like `plan`'s; the model then runs once more, and every line has its layer's relative output error.
        optimizer: a `torch.optim.Optimizer`; the old parameters leave their groups, the new ones enter the same group.
    Returns: `Applied`; its `undo_()` gives the old model (and optimizer) back.
    Raises: BadInput where the plan belongs to another model; UnsupportedConv where an operator refuses.
    """
    if init not in INITS:
        raise BadInput(f"init={init!r}: one of {', '.join(map(repr, INITS))}")
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    sites = {name: site for site in convolutions(model) for name in site.names}
    for swap in plan:
        _check(swap, sites)
    pending = [_build(swap, sites[swap.name], init) for swap in plan.swapped]
    if len({id(each.site.module) for each in pending}) < len(pending):
        raise BadInput("the plan swaps one shared module under two names; plan this model again")
    if data is not None and pending:
        _measure(model, data, pending)
    regrouped = None
    if optimizer is not None:
        regrouped = regroup_(optimizer, [(p.swap.name, p.site.module, p.new) for p in pending])
    for each in pending:
        move_hooks(each.site.module, each.new)
        each.site.replace(each.new)
    return Applied(pending, regrouped)


def _check(swap: Swap, sites: dict[str, Site]) -> None:
    """Raise BadInput unless the model has the layer of this line, as it was when it was planned."""
    if swap.to is None:
        return
    site = sites.get(swap.name)
    if site is None:
        raise BadInput(
            f"the plan swaps {swap.name!r}, and the model has no such convolution{nearest(swap.name, list(sites))}; "
            "was it saved from another model?"
        )
    if site.obstacle:
        raise BadInput(f"the plan swaps {swap.name!r}, which cannot be swapped now: {site.obstacle}; plan again")
    now = ConvSpec.from_conv(cast(nn.Conv2d, site.module))
    if swap.spec is not None and now.arguments() != swap.spec.arguments():
        raise BadInput(
            f"the plan swaps {swap.name!r} as {swap.spec}, and the model has {now} there; "
            "was it saved from another model?"
        )


def _build(swap: Swap, site: Site, init: str) -> _Pending:
    old, (name, options) = cast(nn.Conv2d, site.module), parse(str(swap.to))  # `_check` saw to the type
    try:
        new: Operator = get(name).from_conv(old, **options)
    except TypeError as error:  # an option of the wrong type
        raise BadInput(f"{swap.name}: {swap.to}: {error}") from error
    how = "projected" if init == "project" and new.project_(old) else "fresh"
    if _is_channels_last(old.weight):
        new.to(memory_format=torch.channels_last)
    new.requires_grad_(old.weight.requires_grad)
    return _Pending(swap, site, new.train(old.training), how)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _measure(model: nn.Module, data: Inputs, pending: list[_Pending]) -> None:
    """Run the old model once and let every new layer see what its old one saw."""

    def compare(each: _Pending) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            x = arguments[0] if arguments else next(iter(named.values()))
            theirs = output.double()
            each.difference += float((each.new(x).double() - theirs).square().sum())
            each.scale += float(theirs.square().sum())
            each.measured = True

        return hook

    handles = [p.site.module.register_forward_hook(compare(p), with_kwargs=True) for p in pending]
    try:
        for each in pending:
            each.new.eval()
        with watched(model):
            call(model, data)
    finally:
        for each, handle in zip(pending, handles, strict=True):
            handle.remove()
            each.new.train(each.site.module.training)
