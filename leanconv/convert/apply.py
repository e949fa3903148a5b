"""apply_: swap the layers of a plan in place, all or none, and be able to take it back."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.convert.applied import Applied, Pending, changed_
from leanconv.convert.fit import Fitting, Job, fit
from leanconv.convert.optimizer import regroup_
from leanconv.convert.swap import Plan, Swap
from leanconv.convert.tree import Site, convolutions, move_hooks
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.registry import get, nearest, parse
from leanconv.running import Inputs, call, watched
from leanconv.spec import ConvSpec

INITS = ("project", "fresh", "fit")


@torch.inference_mode(False)  # new layers made inside that mode could never be trained
def apply_(
    model: nn.Module,
    plan: Iterable[Swap],
    *,
    init: str = "project",
    data: Any = None,
    optimizer: Any = None,
    progress: bool = True,
    whole_steps: int | None = None,
) -> Applied:
    """Swap the layers of `plan` in `model`, in place. Everything is checked and built before anything is changed.

    The new layer has the old one's device, dtype, memory format, mode and forward hooks; a frozen layer stays frozen.

    Args:
        init: "project" takes over what a closed form can of the trained weights, the rest is fresh; "fresh": all fresh;
            "fit": as "project", then layer after layer made to give the old outputs on `data`, which takes minutes.
        data: inputs like `plan`'s; the model then runs once more, and every line has its layer's relative output error.
            For "fit" some hundred images without labels: one tensor `N C H W`, a list of batches or a DataLoader. Of a
            batch that is a tuple the model takes what its `forward` requires; labels behind it are left out.
        optimizer: a `torch.optim.Optimizer`; the old parameters leave their groups, the new ones enter the same group.
        progress: draw a bar on a terminal while it fits.
        whole_steps: the most steps in which "fit" refines the network as a whole, after its blocks, which takes most of
            its time; 0 leaves that out. Default: 20 to 300, by the network's size.
    Returns: `Applied`; its `undo_()` gives the old model (and optimizer) back. A fit also replaces the statistics of
        BatchNorms behind the new layers; an interrupted one leaves the model as it was.
    Raises: BadInput where the plan belongs to another model, for data of another shape, empty or read once only, for
        NaN in data or weights; UnsupportedConv where an operator refuses.
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
    if isinstance(whole_steps, bool) or not (
        whole_steps is None or (isinstance(whole_steps, int) and whole_steps >= 0)
    ):
        raise BadInput(f"whole_steps={whole_steps!r}: a whole number, at least 0")
    if init == "fit" and data is None:
        raise BadInput("init='fit' needs data=: some hundred images as a tensor, a list of batches or a DataLoader")
    fitting = Fitting()
    if pending and init == "fit":
        fitting = _fit(model, pending, data, progress, whole_steps)
    elif pending and data is not None:
        _measure(model, data, pending)
    regrouped = None
    if optimizer is not None:
        regrouped = regroup_(optimizer, [(p.swap.name, p.site.module, p.new) for p in pending])
    for each in pending:
        move_hooks(each.site.module, each.new)
        each.site.replace(each.new)
    changed = changed_(fitting.statistics)
    return Applied(pending, regrouped, changed, fitting.blocks, fitting.notes, fitting.output_errors)


def _fit(model: nn.Module, pending: list[Pending], data: Any, progress: bool, whole_steps: int | None) -> Fitting:
    jobs = [Job(each.site, each.new, each.how == "projected") for each in pending]
    fitting = fit(model, jobs, data, progress=progress, whole_steps=whole_steps)
    for each in pending:
        each.fitted = fitting.results[each.site.name]
    return fitting


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


def _build(swap: Swap, site: Site, init: str) -> Pending:
    old, (name, options) = cast(nn.Conv2d, site.module), parse(str(swap.to))  # `_check` saw to the type
    try:
        new: Operator = get(name).from_conv(old, **options)
    except TypeError as error:  # an option of the wrong type
        raise BadInput(f"{swap.name}: {swap.to}: {error}") from error
    try:
        how = "projected" if init != "fresh" and new.project_(old) else "fresh"
    except BadInput as error:
        raise BadInput(f"{swap.name}: {error}") from error
    if _is_channels_last(old.weight):
        new.to(memory_format=torch.channels_last)
    new.requires_grad_(old.weight.requires_grad)
    return Pending(swap, site, new.train(old.training), how)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _measure(model: nn.Module, data: Inputs, pending: list[Pending]) -> None:
    """Run the old model once and let every new layer see what its old one saw."""

    def compare(each: Pending) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            x = arguments[0] if arguments else next(iter(named.values()))
            theirs = output.double()
            each.difference += float((each.new(x).double() - theirs).square().sum())
            each.scale += float(theirs.square().sum())
            each.measured = True

        return hook

    # Before the user's hooks: they move to the new layer, and run after it.
    handles = [p.site.module.register_forward_hook(compare(p), with_kwargs=True, prepend=True) for p in pending]
    try:
        for each in pending:
            each.new.eval()
        with watched(model):
            call(model, data)
    finally:
        for each, handle in zip(pending, handles, strict=True):
            handle.remove()
            each.new.train(each.site.module.training)
