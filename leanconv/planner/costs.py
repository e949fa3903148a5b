"""What each layer costs with each choice, in every limited quantity, and what the rest of the network costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from leanconv.convert import Plan
from leanconv.cost import Cost
from leanconv.measure import Array, profile_array
from leanconv.measure.counting.count import count_recorded
from leanconv.measure.counting.record import record
from leanconv.planner.latency import Latencies
from leanconv.planner.trial_swaps import DENSE, Layer


@dataclass(frozen=True)
class Costs:
    """One quantity: `rows[layer][choice]`, and the `dense` network's total; the rest of it is no layer's."""

    quantity: str
    dense: float
    rows: Mapping[str, Mapping[str, float]]

    def of(self, choices: Mapping[str, str]) -> float:
        """The network's total where these layers have these choices, and all others are dense."""
        return self.dense - sum(self.saved(layer, to) for layer, to in choices.items())

    def saved(self, layer: str, to: str) -> float:
        """What a choice saves against the dense layer; negative where it costs."""
        row = self.rows[layer]
        return row[DENSE] - row[to]

    @property
    def rest(self) -> float:
        """What no choice changes."""
        return self.dense - sum(row[DENSE] for row in self.rows.values())


def latency_costs(latencies: Latencies) -> Costs:
    """ms of one call."""
    rows = {name: {to: figure.ms for to, figure in row.items()} for name, row in latencies.layers.items()}
    return Costs("latency", latencies.dense_ms, rows)


def counted_costs(quantity: str, model: nn.Module, inputs: Any, layers: Sequence[Layer]) -> Costs:
    """MACs (as the papers count) and parameters of the whole network, or bytes of all its convolutions."""
    rows = {
        layer.name: {DENSE: _count(quantity, next(iter(layer.swaps.values())).before)}
        | {to: _count(quantity, swap.after) for to, swap in layer.swaps.items()}
        for layer in layers
        if layer.swaps
    }
    if quantity == "bytes":
        lines = Plan(next(iter(layer.swaps.values()), layer.kept) for layer in layers)
        dense = float(lines.before.bytes)
    elif quantity == "params":
        dense = float(sum(p.numel() for p in model.parameters()))
    else:
        dense = float(count_recorded(record(model, inputs), "macs").flops)
    return Costs(quantity, dense, rows)


def _count(quantity: str, cost: Cost | None) -> float:
    if cost is None:  # a line that is swapped has both costs
        raise ValueError("a swapped layer without a cost")
    return float({"macs": cost.macs, "params": cost.params + cost.norm_params, "bytes": cost.bytes}[quantity])


def array_costs(
    model: nn.Module, swapped: Mapping[str, nn.Module], layers: Sequence[Layer], inputs: Any, array: Array
) -> Costs:
    """Cycles on an output-stationary systolic array (`measure.hardware.systolic`)."""
    names = [layer.name for layer in layers if layer.swaps]
    own = profile_array(model, inputs, array)
    rows = {name: {DENSE: _inside(own.layers, name)} for name in names}
    for to, each in swapped.items():
        found = profile_array(each, inputs, array).layers
        for layer in layers:
            if to in layer.swaps:
                rows[layer.name][to] = _inside(found, layer.name)
    return Costs("cycles", float(own.cycles), rows)


def _inside(found: Iterable[Any], name: str) -> float:
    return float(sum(each.cycles for each in found if each.name == name or each.name.startswith(f"{name}.")))
