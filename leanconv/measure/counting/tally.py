"""compare_conventions(): one model's counts by every tool and paper, side by side, with the reasons for differences."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.counting.conventions import CONVENTIONS, Convention, convention
from leanconv.measure.counting.count import Counts, Uncounted, count_recorded
from leanconv.measure.counting.ops import OpCall
from leanconv.measure.counting.products import CONTRACTIONS
from leanconv.measure.counting.record import ModuleCall, Recording, child_names, record
from leanconv.measure.state import main_input
from leanconv.table import si, table

BASE = "macs"
_LABELS = {
    "linear": "FC", "matmul": "matrix product", "attention": "attention", "batch_norm": "norm", "instance_norm": "norm",
    "group_norm": "norm", "layer_norm": "norm", "relu": "activation", "hardswish": "activation",
    "adaptive_pool": "pooling", "global_mean": "pooling", "upsample_nearest": "upsampling",
    "upsample_bilinear": "upsampling", "grid_sample": "upsampling",
}  # fmt: skip
_CLASSES = {"Conv": "conv", "ConvTranspose": "transposed conv", "BatchNorm": "norm", "Linear": "FC"}
_REST = "operators as they run, not as published"


@dataclass(frozen=True)
class ConventionRow:
    """One convention: its totals, their parts, and their difference to plain multiply-accumulates.

    Attributes:
        parts: kind -> amount; they add up to `counts.flops`.
        differs: kind -> this convention's amount less that of "macs", zeros left out; adds up to the whole difference.
        why: the same in words.
    """

    counts: Counts
    parts: dict[str, int]
    differs: dict[str, int]
    params_differ: int
    ratio: float
    why: str


@dataclass(frozen=True)
class ConventionTable:
    """One model under several counting conventions; the first row is "macs", to which all others are compared."""

    rows: tuple[ConventionRow, ...]
    shape: tuple[int, ...]

    def __getitem__(self, name: str) -> ConventionRow:
        for row in self.rows:
            if row.counts.convention == name:
                return row
        raise BadInput(f"{name!r} is not in the table; there are: {', '.join(r.counts.convention for r in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "conventions": [
                {
                    "name": row.counts.convention,
                    "says": convention(row.counts.convention).says,
                    "unit": row.counts.unit,
                    "params": row.counts.params,
                    "flops": row.counts.flops,
                    "madd": row.counts.madd,
                    "ratio": row.ratio,
                    "parts": row.parts,
                    "differs": row.differs,
                    "params_differ": row.params_differ,
                    "why": row.why,
                    "uncounted": row.counts.uncounted,
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        rows = [
            [
                row.counts.convention,
                f"{row.counts.params:,}",
                f"{row.counts.flops:,}",
                row.counts.unit,
                f"{row.ratio:.4f}x",
                row.why,
            ]
            for row in self.rows
        ]
        rules = [f"{row.counts.convention}: {convention(row.counts.convention).says}" for row in self.rows]
        title = f"one model, input {'x'.join(map(str, self.shape))}, by every counting rule; differences are to macs"
        head = ["convention", "params", "counts", "unit", "to macs", "why it differs"]
        return table(head, rows, title=title, note=rules)


def compare_conventions(model: nn.Module, inputs: Any, *, conventions: Sequence[str] = ()) -> ConventionTable:
    """Count `model` on `inputs` by several rules at once, and take every difference to plain MACs apart by kind.

    The model runs once, without arithmetic if possible, and stays unchanged.

    Args:
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        conventions: names of `conventions.CONVENTIONS`; default: all of them.
    Raises: UnknownName for an unknown convention.
    """
    names = dict.fromkeys([BASE, *(conventions or CONVENTIONS)])
    rules = [convention(name) for name in names]
    recording = record(model, inputs)
    counted = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Uncounted)  # the table lists each rule's uncounted operations
        for rule in rules:
            counts = count_recorded(recording, rule.name)
            counted.append((counts, _parts(recording, rule, counts)))
    base, base_parts = counted[0]
    rows = []
    for counts, parts in counted:
        differs = {kind: parts.get(kind, 0) - base_parts.get(kind, 0) for kind in {**base_parts, **parts}}
        differs = {kind: amount for kind, amount in differs.items() if amount}
        extra = counts.params - base.params
        ratio = counts.flops / base.flops if base.flops else 1.0
        rows.append(ConventionRow(counts, parts, differs, extra, ratio, _why(counts, differs, extra, base_parts)))
    return ConventionTable(tuple(rows), tuple(main_input(inputs).shape))


def _parts(recording: Recording, rule: Convention, counts: Counts) -> dict[str, int]:
    """The parts of a convention's figure; what remains after the recorded operations is an operator's formula."""
    found = Counter[str]()
    if rule.tool is not None:
        for _, what, amount in rule.tool(recording).parts:
            found[what] += amount
    elif rule.modules:
        last = {id(call.module): call for call in recording.calls if not child_names(call.module)}
        for call in last.values():
            found.update(_module_parts(rule, call))
    else:
        for op in recording.ops:
            if op.kind in rule.ops:
                found.update(_op_parts(op, rule.ops[op.kind](op)))
    found[_REST] += counts.flops - sum(found.values())
    return {kind: amount for kind, amount in found.items() if amount}


def _op_parts(op: OpCall, amount: int) -> dict[str, int]:
    turned = op.kind == "conv" and bool(op.sizes) and op.sizes[0].transposed
    label = "transposed conv" if turned else _LABELS.get(op.kind, op.kind)
    if op.kind in CONTRACTIONS and op.bias and amount == op.macs + op.bias:
        return {label: op.macs, "bias": op.bias}
    return {label: amount}


def _module_parts(rule: Convention, call: ModuleCall) -> dict[str, int]:
    counted = next((each for kind, each in rule.modules if isinstance(call.module, kind)), None)
    amount = counted(call)[0] if counted else 0
    name = next((kind.__name__ for kind, _ in rule.modules if isinstance(call.module, kind)), "")
    label = _CLASSES.get(name.removesuffix("2d").removesuffix("3d"))
    if label is None:
        label = "pooling" if "Pool" in name else "upsampling" if name == "Upsample" else "activation"
    if label == "conv" and call.module.bias is not None:
        bias = math.prod(call.out_shape)
        return {label: amount - bias, "bias": bias}
    return {label: amount}


def _why(counts: Counts, differs: dict[str, int], params: int, base: dict[str, int]) -> str:
    run = sum(amount for kind, amount in base.items() if kind != _REST)
    if counts.convention == BASE:
        words = ["multiply-accumulates alone"]
    elif run and counts.flops == 2 * run:
        words = ["two for every multiply-accumulate that runs"]
    elif not differs:
        words = ["nothing to add here"]
    else:
        words = [_words(kind, amount, counts) for kind, amount in sorted(differs.items(), key=lambda one: -abs(one[1]))]
    if params:
        words.append(f"{'+' if params > 0 else '-'}{si(abs(params))} params")
    if counts.uncounted:
        words.append("sees no " + ", ".join(f"{name} ({times}x)" for name, times in counts.uncounted.items()))
    return "; ".join(words)


def _words(kind: str, amount: int, counts: Counts) -> str:
    size = f"{'+' if amount > 0 else '-'}{si(abs(amount))} {kind}"
    if amount > 0 and kind == "transposed conv":
        return f"{size} (by its outputs, times stride²)"
    if amount < 0 and kind in ("conv", "FC", "transposed conv", "matrix product", "attention"):
        if kind == "conv" and counts.convention == "torchstat" and not counts.uncounted:
            return f"{size} (a shared layer's other calls)"
        return f"{size} (not counted)"
    return size
