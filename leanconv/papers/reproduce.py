"""reproduce: a paper's table beside our own figures, from real modules counted under a named convention."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from leanconv.errors import BadInput, UnknownName
from leanconv.measure.conventions import CONVENTIONS
from leanconv.measure.count import Counts, count
from leanconv.papers import splconv
from leanconv.papers.network import Network
from leanconv.papers.printed import COLUMNS, PrintedRow, printed_rows, slugs
from leanconv.papers.timing import Progress, Rates, measure_rates
from leanconv.registry import nearest
from leanconv.table import table

# Paper (the first half of a slug) -> the module that has its NETWORKS, ALTERNATIVES and READINGS.
_PAPERS: dict[str, Any] = {"splconv": splconv}


@dataclass(frozen=True)
class Entry:
    """One figure of one row: the paper's and ours. `error` = ours / paper - 1; both None where nothing compares."""

    paper: str
    table: str
    row: str
    column: str
    convention: str
    input: str
    paper_value: int
    ours: int
    error: float | None
    ok: bool | None
    how: str
    reason: str

    def cells(self) -> list[str]:
        error = "-" if self.error is None else f"{100 * self.error:+.3f} %"
        ok = {True: "yes", False: "NO", None: "-"}[self.ok]
        return [self.row, self.column, f"{self.paper_value:,}", f"{self.ours:,}", error, ok]


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` found. `rows`: one entry per row and column; `alternatives`: other readings of the same rows;
    `networks`: model id -> reference; `rates`: measured frame rates; `unexpected`: what should agree and does not.
    """

    rows: tuple[Entry, ...] = ()
    alternatives: tuple[Entry, ...] = ()
    networks: dict[str, str] = field(default_factory=dict)
    rates: tuple[Rates, ...] = ()
    unexpected: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The design's JSON: {"rows": […]}, and beside it the alternatives, references and timings."""
        return {
            "rows": [vars(entry).copy() for entry in self.rows] + [e for rate in self.rates for e in rate.entries()],
            "alternatives": [vars(entry).copy() for entry in self.alternatives],
            "networks": self.networks, "timing": [rate.to_dict() for rate in self.rates],
            "unexpected": list(self.unexpected), "left_out": list(self.left_out),
        }  # fmt: skip

    def __str__(self) -> str:
        parts = [self._table(entries, title) for title, entries in self._tables()]
        parts += [str(rate) for rate in self.rates]
        if self.unexpected:
            parts.append("NOT REPRODUCED, though it should be: " + "; ".join(self.unexpected))
        if self.left_out:
            parts.append(f"Left out, their networks are not built here: {', '.join(self.left_out)}.")
        return "\n\n".join(parts)

    def _tables(self) -> list[tuple[str, list[Entry]]]:
        groups: dict[str, list[Entry]] = {}
        for entries, what in ((self.rows, ""), (self.alternatives, ", other readings")):
            for e in entries:
                title = f"{e.paper}/{e.table}{what}: {e.convention}, input {e.input}"
                groups.setdefault(title, []).append(e)
        return list(groups.items())

    @staticmethod
    def _table(entries: Sequence[Entry], title: str) -> str:
        compared = [e for e in entries if e.ok is not None]
        agree = Counter(e.ok for e in compared)[True]
        notes = [f"{agree} of {len(compared)} figures agree: within 0.5 %, or printing as the paper printed them."]
        readings = _PAPERS[entries[0].paper].READINGS
        notes += [f"[{name}]: {what}." for name, what in readings.items() if any(f"[{name}]" in e.row for e in entries)]
        notes += dict.fromkeys(f"{e.row}: {e.reason}." for e in entries if e.reason)
        columns = ["row", "column", "paper", "ours", "error", "ok"]
        return table(columns, [e.cells() for e in entries], title=title, note="\n".join(notes))


def reproduce(
    selection: str = "all",
    *,
    counts: bool = True,
    time: bool = False,
    size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    batch: int = 1,
    budget_s: float = 60.0,
    min_rounds: int = 5,
    progress: Progress | None = None,
) -> Reproduction:
    """Set a paper's printed figures beside ours.

    Every network is built from its real modules and counted under the convention that the table's digits fit; a figure
    is ok within 0.5 %, or when ours prints as the paper printed it (rounded or truncated).

    Args:
        selection: a table ("splconv/table1"), a paper ("splconv"), or "all" that can be reproduced.
        counts, time: count Params, Flops and MAdd; measure frames per second beside the printed ones.
        size: H, W instead of the table's; counts then only show ours. Default for `time`: 512x512 and the table's.
        device, batch, budget_s, min_rounds: for `time`; seconds per table and size, the least number of rounds.
        progress: called with what is measured and the share done, 0..1.
    Raises: UnknownName for a table nobody knows, BadInput for one whose networks are not built here, or without FPS.
    """
    if not (counts or time):
        raise BadInput("nothing to reproduce: ask for counts, time, or both")
    chosen, left_out = select(selection)
    timed = [slug for slug in chosen if all(row.fps for row in _rows(slug))]
    if size is not None:
        for slug in chosen:
            _check_size(_rows(slug)[0], size)
    if time and not timed:
        raise BadInput(f"{selection}: the paper prints no frame rates; leave --time away")
    rows, alternatives, networks, unexpected = [], [], {}, []
    for row in (r for slug in chosen if counts for r in _rows(slug)):
        paper = _PAPERS[row.slug.split("/")[0]]
        networks[row.model_id] = paper.NETWORKS[row.model_id].reference
        entries = _entries(row, paper.NETWORKS[row.model_id], size)
        rows += entries
        unexpected += [f"{row.row} {e.column}" for e in entries if e.ok is False and row.expected]
        for other, name in paper.ALTERNATIVES.get(row.model_id, {}).items():
            networks[other] = paper.NETWORKS[other].reference
            alternatives += _entries(row, paper.NETWORKS[other], size, name=name)
    rates = []
    for slug in timed if time else ():
        printed = _rows(slug)
        for one in [size] if size else dict.fromkeys([(512, 512), printed[0].input[1:]]):
            known = _PAPERS[slug.split("/")[0]].NETWORKS
            rates.append(
                measure_rates(
                    printed, known, one, device=device, batch=batch, budget_s=budget_s, min_rounds=min_rounds,
                    progress=progress,
                )
            )  # fmt: skip
    return Reproduction(tuple(rows), tuple(alternatives), networks, tuple(rates), tuple(unexpected), tuple(left_out))


def reproducible() -> list[str]:
    """The tables whose networks, all of them, can be built here."""
    return [slug for slug in slugs() if _missing(slug) == []]


def select(selection: str) -> tuple[list[str], list[str]]:
    """(the tables that a selection names, the known ones it would name but whose networks are not built here)."""
    known, built = slugs(), reproducible()
    if selection == "all":
        return built, [slug for slug in known if slug not in built]
    named = [slug for slug in known if selection in (slug, slug.split("/")[0])]
    if not named:
        papers = list(dict.fromkeys(slug.split("/")[0] for slug in known))
        raise UnknownName(
            f"unknown table {selection!r}{nearest(selection, [*known, *papers, 'all'])}; "
            f"can be reproduced: {', '.join(built)}; known as printed figures only: "
            f"{', '.join(slug for slug in known if slug not in built)}"
        )
    if not set(named) & set(built):
        raise BadInput(
            f"{selection}: its networks are not built here yet ({', '.join(_missing(named[0])[:3])}, ...); "
            f"can be reproduced: {', '.join(built)}"
        )
    return [slug for slug in named if slug in built], [slug for slug in named if slug not in built]


def _rows(slug: str) -> list[PrintedRow]:
    return [row for row in printed_rows() if row.slug == slug]


def _check_size(row: PrintedRow, size: tuple[int, int]) -> None:
    model = _PAPERS[row.slug.split("/")[0]].NETWORKS[row.model_id].build("meta")
    multiple = getattr(model, "size_multiple", 1)
    if any(side < 1 or side % multiple for side in size):
        raise BadInput(f"{row.slug}: H and W must be multiples of {multiple}, got {size[0]}x{size[1]}")


def _missing(slug: str) -> list[str]:
    known = getattr(_PAPERS.get(slug.split("/")[0]), "NETWORKS", {})
    return [row.model_id for row in _rows(slug) if row.model_id not in known or row.convention not in CONVENTIONS]


def _entries(row: PrintedRow, network: Network, size: tuple[int, int] | None, *, name: str = "") -> list[Entry]:
    """The columns of one row. `name`: of the other reading, where this is one."""
    c, h, w = (row.input[0], *size) if size else row.input
    counts = count(network.build("meta"), torch.empty(1, c, h, w, device="meta"), row.convention)
    return [_entry(row, column, counts, (c, h, w), name) for column in row.values]


def _entry(row: PrintedRow, column: str, counts: Counts, shape: tuple[int, ...], name: str) -> Entry:
    paper, ours = row.values[column], getattr(counts, column)
    if ours is None:
        raise BadInput(f"{row.slug}: convention {row.convention} counts no {COLUMNS[column]}")
    error: float | None = ours / paper - 1
    ok: bool | None = row.agrees(column, ours)
    reason = ""
    if shape != row.input and column != "params":
        error, ok, reason = None, None, f"counted on {shape[1]}x{shape[2]}, printed for {row.input[1]}x{row.input[2]}"
    elif not ok:
        reason = row.note or f"off by more than {100 * row.tolerance:g} %"
    elif abs(ours / paper - 1) > row.tolerance:
        reason = f"{COLUMNS[column]} prints as the paper's {row.printed[column]}"
    slug_paper, slug_table = row.slug.split("/")
    return Entry(
        slug_paper, slug_table, f"{row.row} [{name}]" if name else row.row, COLUMNS[column], row.convention,
        "x".join(map(str, shape)), paper, ours, error, ok, "counted", reason,
    )  # fmt: skip
