"""The input of the hardware models: a network's layers, with the sizes of all their products."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from leanconv.measure.counting.contraction import Contraction
from leanconv.measure.counting.count import Layer, Uncounted, count_recorded
from leanconv.measure.counting.products import CONTRACTIONS
from leanconv.measure.counting.record import record
from leanconv.measure.state import main_input
from leanconv.table import si


class Timed(Protocol):
    """A row that takes cycles."""

    @property
    def cycles(self) -> int: ...


Row = TypeVar("Row", bound=Timed)


@dataclass(frozen=True)
class LayerSizes:
    """A row of `count.Counts` with products. `kind`: that of its part with the most multiply-accumulates."""

    name: str
    type: str
    shape: tuple[int, ...]
    params: int
    sizes: tuple[Contraction, ...]

    @property
    def kind(self) -> str:
        return max(self.sizes, key=lambda one: one.macs).kind if len(self.sizes) == 1 else mixed(self.sizes)

    @property
    def macs(self) -> int:
        return sum(one.macs for one in self.sizes)


def mixed(sizes: Iterable[Contraction]) -> str:
    """The kinds of an operator's parts, each once, in execution order: "depthwise + pointwise"."""
    return " + ".join(dict.fromkeys(one.kind for one in sizes))


@dataclass(frozen=True)
class NetworkSizes:
    """The layers in execution order, the input's shape, all parameters, and operations of unknown sizes.

    `unmapped`: operation -> its multiply-accumulates, 0 if unknown too.
    """

    layers: tuple[LayerSizes, ...]
    shape: tuple[int, ...]
    params: int
    unmapped: dict[str, int]


def layer_sizes(model: nn.Module, inputs: Any) -> NetworkSizes:
    """The sizes of all convolutions and products of one forward in eval mode, which computes nothing where it can."""
    recording = record(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Uncounted)  # `unmapped` lists it
        counts = count_recorded(recording, "executed_macs")
    row_of, found, unmapped = recording.row_of(), dict[str, list[Contraction]](), dict[str, int]()
    for op in recording.ops:
        if op.sizes:
            found.setdefault(row_of[op.owner] or "(model)", []).extend(each for each in op.sizes if each.macs)
        elif op.kind in CONTRACTIONS and op.macs:
            unmapped[op.name] = unmapped.get(op.name, 0) + op.macs
    unmapped |= {name: 0 for name in counts.uncounted if name not in unmapped}
    layers = tuple(_sizes(layer, found[layer.name]) for layer in counts.layers if found.get(layer.name))
    return NetworkSizes(layers, tuple(main_input(inputs).shape), counts.params, unmapped)


def _sizes(layer: Layer, sizes: list[Contraction]) -> LayerSizes:
    return LayerSizes(layer.name, layer.type, layer.shape, layer.params, tuple(sizes))


def slowest(layers: Iterable[Row], count: int) -> list[Row]:
    """The rows with the most cycles, the slowest first."""
    return sorted(layers, key=lambda one: -one.cycles)[:count]


def unmapped_notes(unmapped: Mapping[str, int]) -> list[str]:
    """One line that lists the operations without a mapping; none if all have one."""
    listed = ", ".join(f"{name} ({si(macs) if macs else 'unknown'} MACs)" for name, macs in unmapped.items())
    return [f"not in the cycles: {listed}"] if listed else []
