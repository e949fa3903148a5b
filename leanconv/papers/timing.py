"""Measure frame rates of a table's networks and compare them with the printed ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanconv.errors import BadInput
from leanconv.measure.device import describe, label
from leanconv.measure.timing.latency import Timing, interleave
from leanconv.papers.network import Network
from leanconv.papers.printed import PrintedRow
from leanconv.table import table

Progress = Callable[[str, float], object]


@dataclass(frozen=True)
class Rates:
    """The rates of one table's rows at one input. `device`: `measure.describe`. `label`: the conditions in one line.

    Ratios are relative to the table's first row (the dense network). Ratios carry over to other devices, times do not.
    """

    slug: str
    input: tuple[int, ...]
    rows: tuple[PrintedRow, ...]
    timings: dict[str, Timing]
    label: str
    device: dict[str, Any]
    clock: str = "wall"

    def fps(self, row: str) -> float:
        """Images per second, from the median time of a batch."""
        return 1e3 * self.input[0] / self.timings[row].median_ms

    def ratio(self, row: str) -> float:
        """Our frame rate relative to the first row's."""
        return self.fps(row) / self.fps(self.rows[0].row)

    def paper_ratio(self, row: PrintedRow) -> float:
        """The paper's frame rate relative to the first row's."""
        return float(row.fps or 0) / float(self.rows[0].fps or 1)

    def to_dict(self) -> dict[str, Any]:
        return {
            "table": self.slug,
            "input": list(self.input),
            "label": self.label,
            "device": self.device,
            "clock": self.clock,
            "rows": [
                {
                    "row": r.row,
                    "paper_fps": r.fps,
                    "paper_ratio": self.paper_ratio(r),
                    "fps": self.fps(r.row),
                    "ratio": self.ratio(r.row),
                    **self.timings[r.row].to_dict(),
                }
                for r in self.rows
            ],
        }

    def entries(self) -> list[dict[str, Any]]:
        """Return the rates as rows of `reproduce --json`. `ok` is None, because the device differs from the paper's."""
        paper, name = self.slug.split("/")
        return [
            {
                "paper": paper,
                "table": name,
                "row": r.row,
                "column": "FPS",
                "convention": "measured",
                "input": "x".join(map(str, self.input[1:])),
                "paper_value": r.fps,
                "ours": self.fps(r.row),
                "error": None,
                "ok": None,
                "how": "measured",
                "reason": f"{self.ratio(r.row):.2f}x the first row here, {self.paper_ratio(r):.2f}x in the paper",
            }
            for r in self.rows
        ]

    def __str__(self) -> str:
        cells = [
            [
                r.row,
                f"{r.fps:g}",
                f"{self.paper_ratio(r):.2f}x",
                f"{self.fps(r.row):.3g}",
                f"{self.ratio(r.row):.2f}x",
                self.timings[r.row],
            ]
            for r in self.rows
        ]
        columns = ["row", "paper's FPS", "to its first row", "FPS here", "to our first row", "median of a batch"]
        rounds = self.timings[self.rows[0].row].rounds
        note = (
            f"{rounds} rounds, the networks in turns, {self.clock} time. Compare the ratios: the paper's frames are an "
            "RTX A5000's."
        )
        return table(columns, cells, title=f"{self.slug}, measured on {self.label}", note=note)


def measure_rates(
    rows: Sequence[PrintedRow],
    networks: dict[str, Network],
    size: tuple[int, int],
    *,
    device: str | torch.device = "cpu",
    batch: int = 1,
    budget_s: float = 15.0,
    min_rounds: int = 3,
    clock: str = "wall",
    progress: Progress | None = None,
) -> Rates:
    """Time every row's network at `size` (H, W): eager, float32, eval mode, interleaved in one process.

    `budget_s`, `min_rounds`, `clock`: arguments of `interleave`. Raises BadInput for the device "meta".
    """
    if torch.device(device).type == "meta":
        raise BadInput("device='meta' computes nothing: there is nothing to time on it")
    rows = tuple(rows)
    shape = (batch, rows[0].input[0], *size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    def candidate(network: Network) -> Callable[[], object]:
        model = network.build(device)
        return lambda: model(x)

    say = f"{rows[0].slug} {size[0]}x{size[1]}"
    if progress:
        progress(f"{say}: building, warming up", 0.0)
    with torch.inference_mode():
        timings = interleave(
            {row.row: candidate(networks[row.model_id]) for row in rows},
            budget_s=budget_s,
            warmup=1,
            min_rounds=min_rounds,
            clock=clock,
            on_round=(lambda done: progress(say, done)) if progress else None,
        )
    conditions = label(device, dtype=torch.float32, layout="contiguous", shape=shape)
    return Rates(rows[0].slug, shape, rows, timings, f"{conditions}, eager", describe(device), clock)
