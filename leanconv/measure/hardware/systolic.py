"""Cycles of a network on an output-stationary systolic array of X rows by Y columns, layer by layer.

A product of P output places, F filters and a reduction of length T is cut into folds of r ≤ X places by c ≤ Y filters.
A fold takes T + r + c - 1 cycles (the operands enter skewed), folds run one after the other. A depthwise convolution is
one such product a channel, with one of the Y columns busy. An array that broadcasts a weight along a row (FuSeConv's)
runs a depthwise 1×k or k×1 as one line of input a row: `_lines`. Nothing else takes time: no memory, no pooling.
Source: Selvam, Ganesan, Kumar, DATE 2021, arXiv:2105.13434; the authors' `analyticalLatencyModel.py`. Ours: groups
between 1 and C as that many products, transposed convolutions as the product before their overlapping sum, attention.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.counting.contraction import Contraction
from leanconv.measure.hardware.layer_sizes import LayerSizes, layer_sizes, slowest
from leanconv.table import si, table


@dataclass(frozen=True)
class Array:
    """An array of `rows` (output places) by `columns` (filters).

    Attributes:
        broadcast_rows: a weight reaches a whole row at once: one-dimensional depthwise convolutions map by lines.
        drain: a fold's results leave before the next one starts, one more cycle a row in use.
        skip_lines: the broadcasting array leaves out the lines that a stride drops; the published model runs them.
    """

    rows: int
    columns: int
    broadcast_rows: bool = False
    drain: bool = False
    skip_lines: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise BadInput(
                f"an array of {self.rows}x{self.columns} computes nothing; write ROWSxCOLUMNS, such as 64x64"
            )

    @classmethod
    def parse(cls, text: str, **options: bool) -> Self:
        """From `"64x64"`. Raises BadInput for anything else, and for a side of 0."""
        sides = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
        if sides is None:
            raise BadInput(f"array {text!r}: write ROWSxCOLUMNS, such as 64x64")
        return cls(int(sides[1]), int(sides[2]), **options)

    def __str__(self) -> str:
        extras = [name.replace("_", " ") for name in ("broadcast_rows", "drain", "skip_lines") if getattr(self, name)]
        return (
            f"{self.rows}x{self.columns} systolic array, output-stationary{', ' if extras else ''}{', '.join(extras)}"
        )


def product_cycles(array: Array, places: int, reduction: int, filters: int) -> int:
    """Cycles of one product of `places` by `reduction` by `filters`."""
    full_rows, rest_rows = divmod(places, array.rows)
    full_columns, rest_columns = divmod(filters, array.columns)

    def folds(count: int, r: int, c: int) -> int:
        return count * (reduction + r + c - 1 + (r if array.drain else 0)) if r and c else 0

    return (
        folds(full_rows * full_columns, array.rows, array.columns)
        + folds(full_columns, rest_rows, array.columns)
        + folds(full_rows, array.rows, rest_columns)
        + folds(1, rest_rows, rest_columns)
    )


def cycles(array: Array, sizes: Contraction) -> tuple[int, str]:
    """Cycles of one convolution or matrix product, and how it lies on the array, in words."""
    if array.broadcast_rows and (axis := line_axis(sizes)) is not None:
        return _lines(array, sizes, axis), "lines, one a row"
    each, filters = sizes.c // sizes.groups * sizes.taps, sizes.o // sizes.groups
    if sizes.transposed:  # every input place times every tap of every filter, then the sum of what overlaps
        each, filters = sizes.c // sizes.groups, filters * sizes.taps
    places = sizes.n * sizes.places
    busy = f"{min(places, array.rows)}x{min(filters, array.columns)}"
    words = f"{busy} busy" if sizes.groups == 1 else f"{sizes.groups} products, {busy} busy"
    return sizes.groups * product_cycles(array, places, each, filters), words


def line_axis(sizes: Contraction) -> int | None:
    """0 for a depthwise k×1, 1 for a 1×k; None for what the broadcasting array runs like any other."""
    long = [axis for axis, taps in enumerate(sizes.kernel) if taps > 1]
    plain = sizes.transposed or not sizes.is_depthwise or len(sizes.kernel) != 2
    return None if plain or len(long) != 1 else long[0]


def _lines(array: Array, sizes: Contraction, axis: int) -> int:
    """The published formula: all lines of the padded input, X at a time, Y places of a line each k + Y cycles."""
    along, across = axis, 1 - axis
    lines = sizes.padded[across]
    if array.skip_lines:
        lines = sizes.out[across]
    in_rows = -(-sizes.n * lines * sizes.o // array.rows)
    passes = in_rows * (array.columns + sizes.kernel[along]) * -(-sizes.padded[along] // array.columns)
    return -(-passes // sizes.stride[along])


@dataclass(frozen=True)
class ArrayLayer:
    """One row: what a layer multiplies and how long that takes. `utilisation`: MACs over cycles times X·Y."""

    name: str
    type: str
    kind: str
    shape: tuple[int, ...]
    params: int
    macs: int
    cycles: int
    share: float
    utilisation: float
    mapping: str


@dataclass(frozen=True)
class ArrayProfile:
    """A network on an array: its layers in the order in which they run, and in total.

    `macs` are those that run (a HetConv multiplies its zero blocks). `unmapped`: operations whose sizes are not known,
    with their multiply-accumulates (0: not known either); they are in no total.
    """

    array: Array
    layers: tuple[ArrayLayer, ...]
    shape: tuple[int, ...]
    params: int
    unmapped: dict[str, int]

    @property
    def cycles(self) -> int:
        return sum(layer.cycles for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def utilisation(self) -> float:
        return self.macs / (self.cycles * self.array.rows * self.array.columns) if self.cycles else 0.0

    def slowest(self, count: int = 5) -> tuple[ArrayLayer, ...]:
        """The layers that take most cycles, the slowest first."""
        return tuple(slowest(self.layers, count))

    def by_kind(self) -> dict[str, dict[str, float]]:
        """dense, pointwise, depthwise, ... -> their layers, MACs, cycles and utilisation."""
        found: dict[str, dict[str, float]] = {}
        for layer in self.layers:
            one = found.setdefault(layer.kind, {"layers": 0, "macs": 0, "cycles": 0})
            one["layers"], one["macs"] = one["layers"] + 1, one["macs"] + layer.macs
            one["cycles"] += layer.cycles
        for one in found.values():
            one["utilisation"] = one["macs"] / (one["cycles"] * self.array.rows * self.array.columns)
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "array": asdict(self.array),
            "shape": list(self.shape),
            "layers": [asdict(layer) for layer in self.layers],
            "slowest": [layer.name for layer in self.slowest()],
            "by_kind": self.by_kind(),
            "total": {"params": self.params, "macs": self.macs, "cycles": self.cycles, "utilisation": self.utilisation},
            "unmapped": self.unmapped,
        }

    def __str__(self) -> str:
        head = ["layer", "type", "kind", "output", "MACs", "cycles", "share", "utilisation", "on the array"]
        rows = [
            [
                one.name,
                one.type,
                one.kind,
                "x".join(map(str, one.shape)),
                si(one.macs),
                f"{one.cycles:,}",
                f"{one.share:.1%}",
                f"{one.utilisation:.1%}",
                one.mapping,
            ]
            for one in self.layers
        ]
        rows.append(["total", "", "", "", si(self.macs), f"{self.cycles:,}", "100.0%", f"{self.utilisation:.1%}", ""])
        notes = ["slowest: " + ", ".join(f"{one.name} ({one.kind}, {one.share:.1%})" for one in self.slowest())]
        total = max(1, self.cycles)
        notes += [
            f"{kind}: {one['layers']} layers, {si(one['macs'])} MACs, {one['cycles'] / total:.1%} of the cycles, "
            f"utilisation {one['utilisation']:.1%}"
            for kind, one in self.by_kind().items()
        ]
        notes += unmapped_notes(self.unmapped)
        batch = "x".join(map(str, self.shape))
        return table(head, rows, title=f"{self.array}, input {batch}", note=notes)


def unmapped_notes(unmapped: Mapping[str, int]) -> list[str]:
    """What a hardware model could not place, in one line; nothing where it placed all."""
    listed = ", ".join(f"{name} ({si(macs) if macs else 'unknown'} MACs)" for name, macs in unmapped.items())
    return [f"not in the cycles: {listed}"] if listed else []


def profile_array(model: nn.Module, inputs: Any, array: Array) -> ArrayProfile:
    """The cycles of every layer of `model` on `inputs`, in eval mode; the model does not compute and is left as it was.

    Args:
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
    """
    sizes = layer_sizes(model, inputs)
    counted = [(layer, [cycles(array, each) for each in layer.sizes]) for layer in sizes.layers]
    total = max(1, sum(took for _, each in counted for took, _ in each))
    layers = tuple(_layer(array, layer, found, total) for layer, found in counted)
    return ArrayProfile(array, layers, sizes.shape, sizes.params, sizes.unmapped)


def _layer(array: Array, layer: LayerSizes, found: list[tuple[int, str]], total: int) -> ArrayLayer:
    took = sum(one for one, _ in found)
    slow = max(found, key=lambda each: each[0])[1]  # of an operator's parts the slowest says where its time is
    return ArrayLayer(
        layer.name,
        layer.type,
        layer.kind,
        layer.shape,
        layer.params,
        layer.macs,
        took,
        took / total,
        layer.macs / (took * array.rows * array.columns),
        slow,
    )


@dataclass(frozen=True)
class ArrayComparison:
    """Networks on one array; the first is the base of every ratio. `notes`: name -> what to know of it."""

    profiles: dict[str, ArrayProfile]
    notes: dict[str, str]

    def __getitem__(self, name: str) -> ArrayProfile:
        if name not in self.profiles:
            raise BadInput(f"no network {name!r} was compared; there are: {', '.join(self.profiles)}")
        return self.profiles[name]

    @property
    def base(self) -> ArrayProfile:
        return next(iter(self.profiles.values()))

    def speedup(self, name: str) -> float:
        """How many times fewer cycles than the first network's."""
        return self.base.cycles / max(1, self[name].cycles)

    @property
    def fastest(self) -> str:
        """The name of the network with the fewest cycles; the first named of equals."""
        return min(self.profiles, key=lambda name: self.profiles[name].cycles)

    def to_dict(self) -> dict[str, Any]:
        return {
            "array": asdict(self.base.array),
            "shape": list(self.base.shape),
            "fastest": self.fastest,
            "networks": [
                {
                    "name": name,
                    "params": one.params,
                    "macs": one.macs,
                    "cycles": one.cycles,
                    "utilisation": one.utilisation,
                    "speedup": self.speedup(name),
                    "by_kind": one.by_kind(),
                    "slowest": [layer.name for layer in one.slowest()],
                    "unmapped": one.unmapped,
                    "note": self.notes.get(name, ""),
                }
                for name, one in self.profiles.items()
            ],
        }

    def __str__(self) -> str:
        first = next(iter(self.profiles))
        head = ["network", "params", "MACs", "fewer MACs", "cycles", "fewer cycles", "utilisation", "slowest", "note"]
        rows = []
        for name, one in self.profiles.items():
            slow = one.slowest(1)
            rows.append(
                [
                    name,
                    si(one.params),
                    si(one.macs),
                    f"{self.base.macs / max(1, one.macs):.2f}x",
                    f"{one.cycles:,}",
                    f"{self.speedup(name):.2f}x",
                    f"{one.utilisation:.1%}",
                    slow[0].kind if slow else "",
                    self.notes.get(name, ""),
                ]
            )
        notes = [f"fewer: against {first}; MACs are those that run; slowest: the kind of the slowest layer"]
        notes.append(f"fewest cycles: {self.fastest}")
        notes += [f"{name}: {line}" for name, one in self.profiles.items() for line in unmapped_notes(one.unmapped)]
        batch = "x".join(map(str, self.base.shape))
        return table(head, rows, title=f"{self.base.array}, input {batch}", note=notes)


def compare_array(
    models: Mapping[str, nn.Module], inputs: Any, array: Array, *, notes: Mapping[str, str] | None = None
) -> ArrayComparison:
    """Several networks on the same array and inputs: which convolution suits it. The first is the base.

    Args:
        models: name -> network, such as a dense one and the same with its convolutions swapped (`plan`, `apply_`).
        notes: name -> what to print beside it.
    """
    if not models:
        raise BadInput("nothing to compare: no networks were given")
    return ArrayComparison({name: profile_array(one, inputs, array) for name, one in models.items()}, dict(notes or {}))
