"""plan: which convolution would become what, and why every other one stays; nothing is changed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn

from leanconv.convert import reasons
from leanconv.convert.swap import Plan, Swap
from leanconv.convert.tree import Site, convolutions, is_operator
from leanconv.copies import copied
from leanconv.cost import Cost, dense_cost
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.registry import get, nearest, options_of, parse, unparse
from leanconv.running import Inputs, call, has_lazy, watched
from leanconv.spec import ConvSpec

To = str | Callable[[str, ConvSpec], str | None]
Where = str | Callable[[str, ConvSpec], bool]


def plan(model: nn.Module, inputs: Inputs, *, to: To, where: Where | None = None) -> Plan:
    """Say which convolutions of `model` would become what; a dry run, nothing is changed.

    The model runs once on `inputs`, in eval mode without gradients, to see every convolution's input and which runs
    first; parameters, buffers, modes, hooks and random generators are as before afterwards.

    Args:
        inputs: a tensor, a tuple of the model's arguments, or a dict of its named arguments.
        to: an operator string ("hetconv(part=4)"), or a function (name, ConvSpec) -> operator string or None.
        where: a glob over the names ("layer3.*") or a function (name, ConvSpec) -> bool, see `convert.select`. By
            default every layer that the operator replaces, except the first convolution and what the operator's paper
            keeps. XSepConv keeps 3x3 layers ("outside the paper's rule"). `where="*"` takes these too.
    Returns: a `Plan`: every convolution of the model, swapped or kept with a reason (`convert.reasons`). A weight that
        the model's forward also reads by itself is not seen: keep that layer by `where`. A module that
        stands under several names or is called several times appears once, its calls' costs added.
    Raises: UnknownName for an unknown operator or option; BadInput where the model does not run on `inputs`, or
        `where` matches no convolution.
    """
    if isinstance(to, str):
        parse(to)
    elif not callable(to):
        raise BadInput(f"to={to!r}: an operator string or a function (name, ConvSpec) -> operator string or None")
    if where is not None and not isinstance(where, str) and not callable(where):
        raise BadInput(f"where={where!r}: a glob over layer names or a function (name, ConvSpec) -> bool")
    watched = copied(model) if has_lazy(model) else model  # running a lazy layer gives it its sizes for good
    sites = convolutions(model)
    if isinstance(where, str):
        _check_glob(where, sites)
    seen = _watch(watched, inputs, sites if watched is model else convolutions(watched))
    swaps, numbered = [], Counter[str]()
    order = {index: place for place, index in enumerate(seen)}
    for index in sorted(range(len(sites)), key=lambda i: order.get(i, len(seen))):
        met = seen.get(index, _Met([], False))
        swaps.append(_decide(sites[index], met, to, where, numbered))
    return Plan(swaps)


@dataclass
class _Met:
    """What one convolution met in the run: the shape of its input in every call, and whether it is a first one."""

    shapes: list[tuple[int, ...]]
    first: bool


def _check_glob(pattern: str, sites: list[Site]) -> None:
    names = [name for site in sites for name in site.names]
    if names and not any(fnmatchcase(name, pattern) for name in names):
        raise BadInput(
            f"where={pattern!r} matches no convolution{nearest(pattern, names)}; the model has {len(sites)}, "
            f"the first is {names[0]!r}; a glob such as 'layer3.*' matches the whole name"
        )


def _watch(model: nn.Module, inputs: Inputs, sites: list[Site]) -> dict[int, _Met]:
    """Run the model once: what each site met, by its index, in the order of the first calls.

    First is the convolution that runs first, and every one that reads the same tensor (RepVGG's parallel stems).
    """
    seen: dict[int, _Met] = {}
    start: list[Tensor] = []

    def note(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = arguments[0] if arguments else next(iter(named.values()), None)
            if isinstance(x, Tensor):
                start[:] = start or [x]
                met = seen.setdefault(index, _Met([], False))
                met.shapes.append(tuple(x.shape))
                met.first |= x is start[0]

        return hook

    watchable = [(i, site) for i, site in enumerate(sites) if site.obstacle != reasons.SCRIPTED]
    handles = [site.module.register_forward_pre_hook(note(i), with_kwargs=True) for i, site in watchable]
    try:
        with watched(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _decide(site: Site, met: _Met, to: To, where: Where | None, numbered: Counter[str]) -> Swap:
    """The line of the plan for one convolution. `numbered` counts what each operator was given so far."""
    specs = _specs(site, met.shapes)
    spec, calls = specs[0] if specs else None, len(met.shapes)

    def keep(reason: str) -> Swap:
        return Swap(site.name, None, _cost_now(site.module, specs), None, reason, spec, calls)

    if site.obstacle:
        return keep(site.obstacle)
    if spec is None:
        return keep(reasons.NEVER_CALLED)
    if not _is_selected(site, spec, where):
        return keep(reasons.NOT_SELECTED)
    asked = to if isinstance(to, str) else to(site.name, spec)
    if asked is None:
        return keep(reasons.NOT_SELECTED)
    name, options = parse(asked)
    operator = get(name)
    if type(site.module) is operator:
        return keep(reasons.OPERATOR)
    if spec.kind not in operator.replaces:
        return keep(reasons.of_kind(spec.kind))
    if met.first and where is None:
        return keep(reasons.FIRST)
    if where is None and (reason := operator.why_keep(spec)):
        return keep(f"{reasons.NOT_MEANT}: {name}: {reason}")
    if "layer_index" in options_of(operator) and "layer_index" not in options:
        options["layer_index"] = numbered[name]
    try:
        reason = operator.why_not(spec, **options)
        if reason is None and any(len(shape) != 4 for shape in met.shapes):
            reason = "its input has no batch dimension; it needs N C H W"
        after = None if reason else _added([operator.cost(s, **options) for s in specs])
    except TypeError as error:  # part="4" and the like: only the operator knows its options' types
        raise BadInput(f"to={asked!r}: {error}") from error
    if reason:
        return keep(f"{reasons.UNSUPPORTED}: {name}: {reason}")
    numbered[name] += 1
    return Swap(site.name, unparse(name, options), _added([dense_cost(s) for s in specs]), after, "", spec, calls)


def _is_selected(site: Site, spec: ConvSpec, where: Where | None) -> bool:
    if isinstance(where, str):
        return any(fnmatchcase(name, where) for name in site.names)
    return where is None or bool(where(site.name, spec))


def _specs(site: Site, shapes: list[tuple[int, ...]]) -> list[ConvSpec]:
    """The layer's sizes with the input of each call; nothing for layers that are no 2-D convolution."""
    shapes = [shape for shape in shapes if len(shape) in (3, 4)]
    if is_operator(site.module):
        return [_operator_spec(cast(Operator, site.module), shape) for shape in shapes]
    if not isinstance(site.module, nn.Conv2d) or site.obstacle == reasons.LAZY:
        return []
    return [ConvSpec.from_conv(site.module, shape) for shape in shapes]


def _operator_spec(op: Operator, shape: tuple[int, ...]) -> ConvSpec:
    """An operator's sizes. Only its parameters tell whether it has a bias: their number is one of two."""
    n, (h, w) = (1 if len(shape) == 3 else shape[0]), shape[-2:]
    plain = ConvSpec.of(
        op.in_channels,
        op.out_channels,
        op.kernel_size,
        op.stride,
        op.padding,
        op.dilation,
        op.groups,
        False,
        op.padding_mode,
        n=n,
        h=h,
        w=w,
    )
    cost, held = type(op).cost(plain, **op.options()), sum(p.numel() for p in op.parameters())
    return plain if held == cost.params + cost.norm_params else replace(plain, bias=True)


def _cost_now(module: nn.Module, specs: list[ConvSpec]) -> Cost | None:
    if not specs:
        return None
    if is_operator(module):
        op = cast(Operator, module)
        return _added([type(op).cost(spec, **op.options()) for spec in specs])
    return _added([dense_cost(spec) for spec in specs])


def _added(costs: list[Cost]) -> Cost:
    """Several calls of one layer: the work adds up, the parameters are there once."""
    total = sum(costs[1:], costs[0])
    first = costs[0]
    return Cost(total.macs, total.executed_macs, first.params, first.norm_params, total.bytes)
