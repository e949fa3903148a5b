"""Figures: our counts of the papers' networks; each network is built and run once per input, whatever is asked."""

from typing import Any

import torch

from leanconv.measure.counting.count import count_recorded
from leanconv.measure.counting.record import Recording, record


class Figures:
    """The figures of networks by paper and model id, kept for the next question."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str, tuple[int, ...]], Recording] = {}
        self._found: dict[tuple[str, str, str, tuple[int, ...]], Any] = {}

    def of(self, paper: Any, model_id: str, convention: str, shape: tuple[int, ...]) -> tuple[Any, str]:
        """(what has `.params`, `.flops`, `.madd`, how it was found: "counted" or "formula").

        `paper`: a module with NETWORKS, and FORMULAS for conventions of its own. `shape`: `C H W`.
        """
        network, formula = paper.NETWORKS[model_id], formulas(paper).get(convention)
        run, key = (paper.__name__, model_id, shape), (paper.__name__, model_id, convention, shape)
        if run not in self._runs:
            self._runs[run] = record(network.build("meta"), torch.empty(1, *shape, device="meta"))
        if key not in self._found:
            recording = self._runs[run]
            self._found[key] = formula(network, recording) if formula else count_recorded(recording, convention)
        return self._found[key], "formula" if formula else "counted"


def formulas(paper: Any) -> dict[str, Any]:
    """Convention -> function (network, recorded forward) -> what has `.params` and `.flops`, of no real layer."""
    found: dict[str, Any] = getattr(paper, "FORMULAS", {})
    return found
