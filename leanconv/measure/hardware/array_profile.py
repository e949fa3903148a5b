"""Networks on a systolic array (`systolic.py`): layer by layer, and side by side."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.hardware.layer_sizes import LayerSizes, layer_sizes, slowest, unmapped_notes
from leanconv.measure.hardware.systolic import Array, cycles
from leanconv.table import si, table


@dataclass(frozen=True)
class ArrayLayer:
    """One row: a layer's MACs and cycles. `utilisation`: MACs over cycles times X·Y."""

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
    """A network on an array: its layers in execution order, and in total.

    `macs` are the executed ones (HetConv multiplies its zero blocks). `unmapped`: operations of unknown sizes, with
    their multiply-accumulates (0 if unknown too); no total includes them.
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


def profile_array(model: nn.Module, inputs: Any, array: Array) -> ArrayProfile:
    """The cycles of every layer of `model` on `inputs`, in eval mode; the model computes nothing and stays unchanged.

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
    slow = max(found, key=lambda each: each[0])[1]  # an operator's time is in its slowest part
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
    """Networks on one array; the first is the base of every ratio. `notes`: name -> a remark."""

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
        """The name of the network with the fewest cycles; the first one of a tie."""
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
    """Compare networks on the same array and inputs; the first is the base.

    Args:
        models: name -> network, for example a dense one and its swapped copy (`plan`, `apply_`).
        notes: name -> a remark to print beside it.
    """
    if not models:
        raise BadInput("nothing to compare: no networks were given")
    return ArrayComparison({name: profile_array(one, inputs, array) for name, one in models.items()}, dict(notes or {}))
