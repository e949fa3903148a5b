"""Figures: our counts of the papers' networks. Each network is built and run once per input."""

from typing import Any

import torch

from leanconv.measure.counting.count import count_recorded
from leanconv.measure.counting.record import Recording, record


class Figures:
    """A cache of the networks' figures by paper and model id."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str, tuple[int, ...]], Recording] = {}
        self._found: dict[tuple[str, str, str, tuple[int, ...]], Any] = {}

    def of(self, paper: Any, model_id: str, convention: str, shape: tuple[int, ...]) -> tuple[Any, str]:
        """Return an object with `.params`, `.flops`, `.madd`, and its source: "counted" or "formula".

        `paper`: a module with NETWORKS, and with FORMULAS for its own conventions. `shape`: `C H W`.
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
    """Return convention -> function of network and recording. Its result has `.params` and `.flops`."""
    found: dict[str, Any] = getattr(paper, "FORMULAS", {})
    return found
