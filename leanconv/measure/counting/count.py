"""Exact counts of parameters, multiply-accumulates and bytes, layer by layer, in every named convention."""

import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.counting.conventions import Convention, convention
from leanconv.measure.counting.products import CONTRACTIONS
from leanconv.measure.counting.record import ModuleCall, Recording, child_names, record
from leanconv.measure.counting.tools import ToolFigures
from leanconv.nn import Operator
from leanconv.spec import ConvSpec
from leanconv.table import si, table


class Uncounted(UserWarning):
    """Something ran that the convention has no rule for; the counts list it in `uncounted`."""


@dataclass
class Layer:
    """One row: a leaf module, an operator, or a container's own work between its layers.

    Attributes:
        name, type: dotted name, and class name ("(functional)" for a container's own work).
        calls: how often it ran.
        params: parameters in the convention's sense; shared ones stand in the first row that has them.
        flops: the convention's figure; `madd`: torchstat's second one.
        bytes: read and written by its operations; `min_bytes`: input and output once per call, parameters once.
        launches: kernels started in eager mode.
        shape: of its (last) output.
    """

    name: str
    type: str
    calls: int = 0
    params: int = 0
    flops: int = 0
    madd: int = 0
    bytes: int = 0
    min_bytes: int = 0
    launches: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Totals and rows of one model under one convention. `uncounted`: operation without a rule -> number of calls.

    `flops` is the convention's figure in its own unit (`unit`: MACs or flops); `madd` is torchstat's second column,
    None elsewhere. `executed` says whether the model really ran (else: sizes only).
    """

    convention: str
    unit: str
    params: int
    flops: int
    madd: int | None
    bytes: int
    launches: int
    layers: tuple[Layer, ...]
    uncounted: dict[str, int] = field(default_factory=dict)
    executed: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = ["layer", "type", "calls", "output", "params", self.unit, *(["MAdd"] if self.madd is not None else [])]
        rows = [
            [
                r.name,
                r.type,
                r.calls,
                "x".join(map(str, r.shape)),
                si(r.params),
                si(r.flops),
                *([si(r.madd)] if self.madd is not None else []),
            ]
            for r in self.layers
        ]
        rows.append(["total", "", "", "", si(self.params), si(self.flops), *([si(self.madd)] if self.madd else [])])
        return table(head, rows, title=f"{self.convention}: {convention(self.convention).says}", note=self.note())

    def note(self) -> str:
        """One line that lists uncounted operations; empty if there are none."""
        listed = ", ".join(f"{name} ×{times}" for name, times in self.uncounted.items())
        return f"not counted by {self.convention}: {listed}" if listed else ""


def count(model: nn.Module, inputs: Any, convention: str = "macs") -> Counts:
    """Count `model` on `inputs` under a named convention (see `conventions.CONVENTIONS`).

    The forward runs once in eval mode, without arithmetic where that is possible; mode, buffers and random states are
    as before. Functional calls, shared modules, transposed convolutions and matrix products are counted. "Without
    arithmetic" means fake tensors: a model whose forward keeps tensors in a global keeps fake ones; count a copy.

    Args:
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
    Warns: Uncounted, for what the convention has no rule for. Raises: UnknownName for an unknown convention.
    """
    return count_recorded(record(model, inputs), convention)


def count_recorded(recording: Recording, name: str) -> Counts:
    """The counts of a forward that was recorded before: one recording serves every convention."""
    rule = convention(name)
    rows, uncounted = _rows(recording), Counter[str]()
    row_of = recording.row_of()
    _add_params(recording, rows, row_of, rule)
    if rule.tool is not None:
        _count_as_tool(rule.tool(recording), rows, row_of, uncounted)
    elif rule.modules:
        _count_modules(recording, rows, row_of, rule, uncounted)
    else:
        _count_ops(recording, rows, row_of, rule, uncounted)
    _count_operators(recording, rows, row_of, rule)
    layers = tuple(row for row in rows.values() if row.calls or row.params or row.flops or row.launches)
    counts = Counts(
        rule.name,
        rule.unit,
        sum(r.params for r in layers),
        sum(r.flops for r in layers),
        sum(r.madd for r in layers) if rule.modules else None,
        sum(r.bytes for r in layers),
        sum(r.launches for r in layers),
        layers,
        dict(uncounted),
        recording.executed,
    )
    if uncounted:
        warnings.warn(counts.note(), Uncounted, stacklevel=3)
    return counts


def _rows(recording: Recording) -> dict[str, Layer]:
    """The rows in execution order, unused ones last, with calls, bytes and launches."""
    row_of, rows = recording.row_of(), dict[str, Layer]()

    def row(name: str) -> Layer:
        if name not in rows:
            module = recording.model.get_submodule(name)
            kind = type(module).__name__ if recording.is_whole(name) else "(functional)"
            rows[name] = Layer(name or "(model)", kind)
        return rows[name]

    for op in recording.ops:
        one = row(row_of[op.owner])
        one.bytes += op.bytes
        one.launches += op.launches
        if not recording.is_whole(row_of[op.owner]):
            one.min_bytes += op.bytes
    for call in recording.calls:
        if row_of[call.name] == call.name and recording.is_whole(call.name):
            one = row(call.name)
            one.calls += 1
            one.min_bytes += call.bytes
            one.shape = call.out_shape
    for name in row_of.values():
        row(name)
    return rows


def _add_params(recording: Recording, rows: dict[str, Layer], row_of: dict[str, str], rule: Convention) -> None:
    for name, parameter in recording.model.named_parameters():
        one = rows[row_of[owner_of(name, row_of)]]
        if recording.is_whole(row_of[owner_of(name, row_of)]):
            one.min_bytes += parameter.numel() * parameter.element_size()
        chosen = name in recording.weights and parameter.dim() > 1 if rule.weights_only else parameter.requires_grad
        if chosen and rule.tool is None:
            one.params += parameter.numel()


def owner_of(parameter: str, row_of: dict[str, str]) -> str:
    """The name of the module that holds a parameter: `"a.b.weight"` -> `"a.b"`."""
    owner = parameter.rpartition(".")[0]
    if owner not in row_of:
        raise BadInput(f"parameter {parameter!r} belongs to no module of the model")
    return owner


def _count_ops(
    recording: Recording, rows: dict[str, Layer], row_of: dict[str, str], rule: Convention, uncounted: Counter[str]
) -> None:
    operators = {name: module for name, module in recording.model.named_modules() if isinstance(module, Operator)}
    for op in recording.ops:
        row = row_of[op.owner]
        # An operator counts as a convolution, whichever products implement it here.
        of_layer = rule.as_published and row in operators and op.kind in CONTRACTIONS
        added = rule.ops[op.kind](op) if op.kind in rule.ops else op.macs * of_layer
        rows[row].flops += added
        if op.kind == "unknown" or (op.kind in CONTRACTIONS and op.macs and not added):
            uncounted[op.name] += 1
        if rule.operators and op.dynamic_kernel and (row not in operators or operators[row].name not in rule.operators):
            uncounted["building of kernels"] += 1


def _count_as_tool(
    figures: ToolFigures, rows: dict[str, Layer], row_of: dict[str, str], uncounted: Counter[str]
) -> None:
    for name, _, amount in figures.parts:
        rows[row_of[name]].flops += amount
    for name, params in figures.params:
        rows[row_of[name]].params += params
    uncounted.update(figures.unknown)


def _count_modules(
    recording: Recording, rows: dict[str, Layer], row_of: dict[str, str], rule: Convention, uncounted: Counter[str]
) -> None:
    last = {id(call.module): call for call in recording.calls if not child_names(call.module)}
    for call in last.values():
        counted = next((each for kind, each in rule.modules if isinstance(call.module, kind)), None)
        if counted is not None:
            flops, madd = counted(call)
            rows[row_of[call.name]].flops += flops
            rows[row_of[call.name]].madd += madd
        elif not isinstance(call.module, rule.silent):
            uncounted[type(call.module).__name__] += 1
    leaves = {call.name for call in last.values()}  # an unknown leaf is listed under its class already
    for op in recording.ops:
        if op.kind in CONTRACTIONS and op.macs and op.owner not in leaves:
            uncounted[f"functional {op.api or op.name}"] += 1


def _count_operators(recording: Recording, rows: dict[str, Layer], row_of: dict[str, str], rule: Convention) -> None:
    """Replace an implementation's products by its paper's, where they differ; add the rule's own terms."""
    for call in recording.calls:
        layer = call.module
        if isinstance(layer, Operator) and row_of[call.name] == call.name:
            if rule.as_published:
                rows[call.name].flops += published_difference(layer, call)
            if layer.name in rule.operators:
                rows[call.name].flops += rule.operators[layer.name](_spec(layer, call), layer.options())


def published_difference(layer: Operator, call: ModuleCall) -> int:
    """One call's multiply-accumulates by the paper, minus the executed ones (negative for HetConv)."""
    cost = type(layer).cost(_spec(layer, call), **layer.options())
    return cost.macs - cost.executed_macs


def _spec(layer: Operator, call: ModuleCall) -> ConvSpec:
    n, h, w = (1 if len(call.in_shape) == 3 else call.in_shape[0]), *call.in_shape[-2:]
    return ConvSpec.of(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        True,
        layer.padding_mode,
        n=n,
        h=h,
        w=w,
    )
