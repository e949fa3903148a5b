"""Latency of layers and networks: what a timer measured, and how well it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from leanconv.measure.timing.latency import quantile
from leanconv.planner.trial_swaps import DENSE
from leanconv.progress import Progress

MOST_ERROR = 0.02  # of the network's time: a layer's figure known less well than that is said
MOST_FACTOR = 4.0  # between the savings of a candidate's layers and those of its whole network


@dataclass(frozen=True)
class Figure:
    """A median in ms and its standard error, that of a median of normal noise: 1.253·σ/√n, σ = IQR/1.349."""

    ms: float
    error_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> "Figure":
        ordered = sorted(times_ms)
        spread = quantile(ordered, 0.75) - quantile(ordered, 0.25)
        return cls(quantile(ordered, 0.5), 1.253 * spread / 1.349 / len(ordered) ** 0.5)


@dataclass
class Latencies:
    """ms of one call.

    Attributes:
        dense_ms: of the whole dense network.
        layers: layer -> candidate (and `DENSE`) -> what its steps take in the network of that candidate.
        uniform: candidate -> the whole network with every layer swapped to it that can be.
        refused: candidate -> why its network cannot be timed.
        how: what was timed, in words.
        notes: remarks for the user.
    """

    dense_ms: float
    layers: dict[str, dict[str, Figure]]
    uniform: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    how: str = ""
    notes: list[str] = field(default_factory=list)

    def saved_ms(self, layer: str, to: str) -> float:
        """What a swap of one layer saves; negative where it costs."""
        return self.layers[layer][DENSE].ms - self.layers[layer][to].ms

    def error_ms(self, layer: str, to: str) -> float:
        """The standard error of `saved_ms`."""
        return float((self.layers[layer][DENSE].error_ms ** 2 + self.layers[layer][to].error_ms ** 2) ** 0.5)

    def agree_with_wholes(self) -> None:
        """Scale each candidate's savings, so that those of its layers add up to what its whole network saves.

        Steps that are timed one by one leave out what happens between them, and a swap changes that, too: a figure
        may sink below zero by what its layer's neighbours gain. A sum that is too far from the whole, or of another
        sign, stays as it is.
        """
        for to, whole in self.uniform.items():
            names = [name for name, row in self.layers.items() if to in row]
            added, real = sum(self.saved_ms(name, to) for name in names), self.dense_ms - whole
            if added * real <= 0 or not 1 / MOST_FACTOR <= (factor := real / added) <= MOST_FACTOR:
                continue
            for name in names:
                row = self.layers[name]
                row[to] = Figure(row[DENSE].ms - factor * self.saved_ms(name, to), factor * row[to].error_ms)
            if abs(factor - 1) > 0.1:
                self.notes.append(
                    f"{to}: its layers, timed one by one, save {added / self.dense_ms:.1%} of the latency, and its "
                    f"whole network {real / self.dense_ms:.1%}: each layer's saving was scaled to that"
                )

    def noise(self) -> str:
        """A line on figures that are too noisy to decide by, or ""."""
        unsure = [
            (layer, to)
            for layer, row in self.layers.items()
            for to in row
            if to != DENSE
            and (error := 2 * self.error_ms(layer, to)) > abs(self.saved_ms(layer, to))
            and error > MOST_ERROR * self.dense_ms
        ]
        if not unsure:
            return ""
        first = ", ".join(f"{layer} as {to}" for layer, to in unsure[:3])
        return (
            f"latency is too noisy to decide for {len(unsure)} figures ({first}{', ...' if len(unsure) > 3 else ''}), "
            "although they were sampled more often: repeat on a quieter machine"
        )


@dataclass(frozen=True)
class Whole:
    """One network's measured latency: as a share of the dense one's, with the bounds of that, and in ms."""

    ms: float
    share: float
    low: float
    high: float


class Timer(Protocol):
    """Times layers in their network, and whole networks against the dense one."""

    def layers(self, swapped: Mapping[str, nn.Module], swaps: Mapping[str, set[str]], progress: Progress) -> Latencies:
        """One dense network and, of each candidate, one with all layers `swaps[candidate]` swapped."""

    def wholes(self, models: Mapping[str, nn.Module], progress: Progress) -> dict[str, Whole | str]:
        """Whole networks in turns with the dense one; a text where one cannot be timed."""
