"""The tuning report: each block's times and chosen implementation, and the operators that PyTorch runs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leanconv.engine.fused.ir.graph import Graph, Node
from leanconv.engine.fused.ir.kinds.call import Call
from leanconv.measure.timing.latency import CLOCK_WORDS
from leanconv.table import table

# Operators that compute nothing.
VIEWS = frozenset({
    "alias", "detach", "expand", "flatten", "getitem", "movedim", "narrow", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
})  # fmt: skip


@dataclass(frozen=True)
class TuningRecord:
    """The blocks of one geometry: the implementations that were timed, and the chosen one."""

    block: str
    shape: tuple[int, ...]
    count: int
    times_ms: Mapping[str, float]  # implementation -> median of a call
    refused: Mapping[str, str]  # implementation -> why it was not timed
    chosen: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "block": self.block,
            "shape": list(self.shape),
            "count": self.count,
            "chosen": self.chosen,
            "times_ms": dict(self.times_ms),
            "refused": dict(self.refused),
        }


@dataclass
class TuningReport:
    """All tuning records of a network.

    Attributes:
        clock: the clock of the times (`measure.timing.latency.CLOCKS`).
        note: why no kernel was among the implementations, and how to get kernels; or "".
        left_out: parts that were not fused, and operators without a kernel -> why.
        names: the implementation that each node runs.
        chosen_ms: milliseconds of the implementation that each node runs; 0.0 where nothing was measured.
        in_float32: blocks of an int8 program that stay float32 -> why.
        int8: how many blocks compute in int8, and the loss; "" in other programs.
    """

    rows: list[TuningRecord] = field(default_factory=list)
    clock: str = "wall"
    note: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)
    chosen_ms: dict[Node, float] = field(default_factory=dict)
    in_float32: dict[str, str] = field(default_factory=dict)
    int8: str = ""

    def to_dict(self) -> list[dict[str, Any]]:
        left = [TuningRecord(part, (), 1, {}, {"fused": why}, "aten") for part, why in self.left_out.items()]
        wide = [TuningRecord(block, (), 1, {}, {"int8": why}, "float32") for block, why in self.in_float32.items()]
        return [row.to_dict() for row in (*self.rows, *left, *wide)]

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row.times_ms))
        cells = [
            [
                row.block,
                "x".join(map(str, row.shape)),
                str(row.count),
                *(_number(row.times_ms.get(name)) for name in names),
                row.chosen,
            ]
            for row in self.rows
        ]
        note = (
            f"ms of one call of the block alone, {CLOCK_WORDS[self.clock]}; its result's size; how many the model has"
        )
        note += f"; {self.note}" if self.note else ""
        text = table(["block", "result", "times", *names, "chosen"], cells, note=note)
        wide = [self.int8] * bool(self.int8)
        wide += [f"in float32: {block}: {why}" for block, why in self.in_float32.items()]
        return "\n".join([text, *wide, *(f"not fused: {part}: {why}" for part, why in self.left_out.items())])


def calls(graph: Graph) -> dict[str, str]:
    """The operators that stay calls of PyTorch, as entries of `left_out`."""
    names = (str(node.op).removeprefix("aten.").split(".")[0] for node in graph.nodes if isinstance(node.op, Call))
    counts = Counter(name for name in names if name not in VIEWS and "getitem" not in name)
    return {f"{name} x{count}": "no kernel computes it" for name, count in counts.items()}


def _number(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3g}"
