"""plan: which convolution would become what, and why every other one stays; nothing is changed."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self, cast, overload

from torch import Tensor, nn

from leanconv.convert import reasons
from leanconv.convert.observe import Inputs, call, has_lazy, undisturbed
from leanconv.convert.tree import Site, convolutions, is_operator
from leanconv.cost import Cost, dense_cost
from leanconv.errors import BadInput
from leanconv.files import read_json, write_json
from leanconv.nn import Operator
from leanconv.registry import get, nearest, options_of, parse, unparse
from leanconv.spec import ConvSpec
from leanconv.table import si, table

To = str | Callable[[str, ConvSpec], str | None]
Where = str | Callable[[str, ConvSpec], bool]

_FORMAT = "leanconv plan 1"


@dataclass(frozen=True)
class Swap:
    """One convolution of the plan.

    Attributes:
        name: its name in the model (the first, where it has several).
        to: the operator string it becomes; None where it stays.
        before, after: its cost on the planned input, all calls together; None where it is not counted (not called,
            not a `Conv2d`, or, for `after`, not swapped).
        reason: why it stays, one of `leanconv.convert.reasons`; empty where it is swapped.
        spec: its sizes and the input of its first call; None where it has none.
        calls: how often the model calls it.
    """

    name: str
    to: str | None
    before: Cost | None
    after: Cost | None
    reason: str
    spec: ConvSpec | None = None
    calls: int = 0

    def __str__(self) -> str:
        if self.to is None or self.before is None or self.after is None:
            return f"keep {self.name}: {self.reason}" if self.to is None else f"swap {self.name}: {self.to}"
        return f"swap {self.name}: {self.to}, {si(self.before.macs)} -> {si(self.after.macs)} MACs"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Plan(Sequence[Swap]):
    """A list of `Swap`, in the order in which the model runs them. Prints as a table; filter it like a list."""

    def __init__(self, swaps: Iterable[Swap]) -> None:
        self._swaps = tuple(swaps)
        for name, times in Counter(swap.name for swap in self._swaps).items():
            if times > 1:
                raise BadInput(f"the plan names {name!r} {times} times; each layer may stand in it once")

    @overload
    def __getitem__(self, index: int) -> Swap: ...
    @overload
    def __getitem__(self, index: slice) -> "Plan": ...
    def __getitem__(self, index: int | slice) -> "Swap | Plan":
        return Plan(self._swaps[index]) if isinstance(index, slice) else self._swaps[index]

    def __len__(self) -> int:
        return len(self._swaps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._swaps == other._swaps

    def __hash__(self) -> int:
        return hash(self._swaps)

    @property
    def swapped(self) -> list[Swap]:
        """The layers that change."""
        return [swap for swap in self if swap.to is not None]

    @property
    def kept(self) -> list[Swap]:
        """The convolutions that stay, each with its reason."""
        return [swap for swap in self if swap.to is None]

    @property
    def before(self) -> Cost:
        """The cost of the counted convolutions as they are."""
        return sum((swap.before for swap in self if swap.before), Cost(0, 0, 0, 0, 0))

    @property
    def after(self) -> Cost:
        """The cost of the same convolutions once the plan is applied."""
        return sum(((swap.after or swap.before) for swap in self if swap.before), Cost(0, 0, 0, 0, 0))

    def reasons(self) -> dict[str, int]:
        """How many convolutions stay for which reason, the commonest first."""
        return dict(Counter(reasons.category(swap.reason) for swap in self.kept).most_common())

    def __str__(self) -> str:
        if not self:
            return "the model has no convolution"
        rows = [
            [
                swap.name, swap.spec or "-", swap.to or "-",
                *_pair(swap, lambda cost: cost.macs), *_pair(swap, lambda cost: cost.params + cost.norm_params),
                swap.reason + (f"; called {swap.calls} times" if swap.calls > 1 else ""),
            ] for swap in self
        ]  # fmt: skip
        columns = ["layer", "sizes", "to", "MACs", "after", "params", "after", "stays because"]
        return table(columns, rows, note=self._note())

    def __repr__(self) -> str:
        return f"Plan({len(self.swapped)} swapped, {len(self.kept)} kept)"

    def _note(self) -> str:
        before, after = self.before, self.after
        lines = [
            f"{len(self.swapped)} of {len(self)} convolutions change; all counted convolutions together: "
            f"{si(before.macs)} -> {si(after.macs)} MACs, "
            f"{si(before.params + before.norm_params)} -> {si(after.params + after.norm_params)} params"
        ]
        if self.kept:
            lines.append("kept: " + ", ".join(f"{count} {reason}" for reason, count in self.reasons().items()))
            lines.extend(f"  {reason}: {reasons.MEANING[reason]}" for reason in self.reasons())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain numbers and strings: what `save` writes."""
        return {
            "format": _FORMAT, "layers": [swap.to_dict() for swap in self],
            "total": {"before": asdict(self.before), "after": asdict(self.after)}, "kept": self.reasons(),
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a saved plan. Raises BadInput, with the entry at fault, where the file is not one."""
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != _FORMAT or not isinstance(value.get("layers"), list):
            raise BadInput(f"{path}: not a plan of this version ({_FORMAT!r}); write one with Plan.save")
        swaps = []
        for index, entry in enumerate(value["layers"]):
            try:
                swaps.append(_swap(entry))
            except (TypeError, ValueError, KeyError) as error:
                raise BadInput(f"{path}: layer {index}: {error}") from error
        return cls(swaps)


def _pair(swap: Swap, number: Callable[[Cost], int]) -> tuple[str, str]:
    return tuple(si(number(cost)) if cost else "-" for cost in (swap.before, swap.after))  # type: ignore[return-value]


def _swap(entry: Any) -> Swap:
    """One entry of a plan file, checked: a file may be damaged or written by somebody else."""
    if not isinstance(entry, dict) or set(entry) != {field.name for field in fields(Swap)}:
        raise BadInput(f"needs exactly the keys {', '.join(field.name for field in fields(Swap))}")
    name, to, reason, calls, spec = (entry[key] for key in ("name", "to", "reason", "calls", "spec"))
    if not isinstance(name, str) or not isinstance(reason, str) or not _is_count(calls):
        raise BadInput("name and reason must be text, calls a count")
    if to is not None:
        parse(to if isinstance(to, str) else repr(to))
    elif reasons.category(reason) not in reasons.MEANING:
        raise BadInput(f"unknown reason {reason[:80]!r}; known: {', '.join(reasons.MEANING)}")
    return Swap(name, to, _cost(entry["before"]), _cost(entry["after"]), reason, _spec(spec), calls)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _cost(value: Any) -> Cost | None:
    if value is None:
        return None
    keys = {field.name for field in fields(Cost)}
    if not isinstance(value, dict) or set(value) != keys or not all(map(_is_count, value.values())):
        raise BadInput(f"a cost has exactly the counts {', '.join(sorted(keys))}")
    return Cost(**value)


def _spec(value: Any) -> ConvSpec | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(ConvSpec)}:
        raise BadInput("a spec has exactly the fields of ConvSpec")
    lists = [item for each in value.values() for item in (each if isinstance(each, list) else [each])]
    if not all(_is_count(item) or isinstance(item, str | bool) for item in lists):
        raise BadInput("a spec holds whole numbers")
    v = dict(value)
    return ConvSpec.of(
        v.pop("c"), v.pop("o"), v.pop("kernel"), v.pop("stride"), v.pop("padding"), v.pop("dilation"), **v
    )  # fmt: skip


def plan(model: nn.Module, inputs: Inputs, *, to: To, where: Where | None = None) -> Plan:
    """Say which convolutions of `model` would become what; a dry run, nothing is changed.

    The model runs once on `inputs`, in eval mode without gradients, to see every convolution's input and which runs
    first; parameters, buffers, modes, hooks and random generators are as before afterwards.

    Args:
        inputs: a tensor, a tuple of the model's arguments, or a dict of its named arguments.
        to: an operator string such as "hetconv(part=4)", or a function (name, ConvSpec) -> operator string or None.
        where: a glob over the names ("layer3.*") or a function (name, ConvSpec) -> bool, see `convert.select`. Without
            it every layer that the operator replaces is taken, except the network's first convolution.
    Returns: a `Plan`: every convolution of the model, swapped or kept with a reason (`convert.reasons`). A module that
        stands under several names or is called several times appears once, its calls' costs added.
    Raises: UnknownName for an operator or option nobody has; BadInput where the model does not run on `inputs`, or
        `where` matches no convolution.
    """
    if isinstance(to, str):
        parse(to)
    elif not callable(to):
        raise BadInput(f"to={to!r}: an operator string or a function (name, ConvSpec) -> operator string or None")
    if where is not None and not isinstance(where, str) and not callable(where):
        raise BadInput(f"where={where!r}: a glob over layer names or a function (name, ConvSpec) -> bool")
    watched = copy.deepcopy(model) if has_lazy(model) else model  # running a lazy layer gives it its sizes for good
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
        with undisturbed(model):
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
        op.in_channels, op.out_channels, op.kernel_size, op.stride, op.padding, op.dilation, op.groups, False,
        op.padding_mode, n=n, h=h, w=w,
    )  # fmt: skip
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
