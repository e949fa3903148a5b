"""How long a core's work takes, as one value of the cost model: measured by calibration, or described."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Speeds:
    """Times in cycles of the cost model: one cycle is a multiply-add on the widest vectors, with many in flight.

    So no clock frequency enters, and a core that is slower in everything has the same speeds. The defaults are neutral:
    a core that starts two multiply-adds, two loads and one store in each clock cycle, whatever its vectors.

    Attributes:
        narrow: a multiply-add on vectors of half the width. 1: as long as on whole ones; 0.5: half as long.
        load, spread: a load of a vector, and of a number into all lanes.
        latency: from a multiply-add to the next one that adds to its sum.
        tile: what a register tile takes beside its products.
        l3_bytes, memory_bytes: read from the last cache, and from memory, in a cycle.
        strassen: of a Strassen product's sums, and winograd, l1_winograd: of Winograd's transforms (plain, and fused in
            the L1 cache): their time over the cycles of their instructions (`cost_model`, `direct_or_winograd`).
    """

    narrow: float = 1.0
    load: float = 1.0
    spread: float = 1.0
    latency: float = 8.0
    tile: float = 16.0
    l3_bytes: float = 8.0
    memory_bytes: float = 5.0
    strassen: float = 2.0
    winograd: float = 1.0
    l1_winograd: float = 0.5

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return ", ".join(f"{field.name.replace('_', ' ')} {getattr(self, field.name):.3g}" for field in fields(self))


# What a core can have: far outside what we know of, and close enough that no choice becomes absurd.
BOUNDS = {
    "narrow": (0.4, 1.2),
    "load": (0.3, 3.0),
    "spread": (0.2, 3.0),
    "latency": (2.0, 24.0),
    "tile": (1.0, 100.0),
    "l3_bytes": (1.0, 100.0),
    "memory_bytes": (0.3, 60.0),
    "strassen": (0.5, 6.0),
    "winograd": (0.4, 3.0),
    "l1_winograd": (0.2, 3.0),
}


def within_bounds(name: str, value: float) -> float:
    """A figure as measured, to three digits, moved into its bounds; neutral if it is no number."""
    if not math.isfinite(value):
        return float(getattr(Speeds(), name))
    low, high = BOUNDS[name]
    return float(f"{min(max(value, low), high):.3g}")


def checked(figures: Any) -> dict[str, float]:
    """Figures from a file. Raises ValueError unless each has a known name, and is a number that a core can have."""
    if not isinstance(figures, dict) or not set(figures) <= set(BOUNDS):
        raise ValueError("it has not the figures of this version")
    for name, value in figures.items():
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} is {str(value)[:40]!r}; it may be {low:g} to {high:g}")
    return {name: float(value) for name, value in figures.items()}
