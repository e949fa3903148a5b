"""reproduce: a paper's table beside our own figures, from real modules counted under a named convention."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from leanconv.errors import BadInput, UnknownName
from leanconv.measure.conventions import CONVENTIONS
from leanconv.measure.count import count_recorded
from leanconv.measure.record import Recording, record
from leanconv.papers import hetconv, splconv
from leanconv.papers.printed import COLUMNS, PrintedRow, printed_rows, slugs
from leanconv.papers.timing import Progress, Rates, measure_rates
from leanconv.registry import nearest
from leanconv.table import table

# Paper (the first half of a slug) -> the module that has its NETWORKS, ALTERNATIVES and READINGS.
_PAPERS: dict[str, Any] = {"splconv": splconv, "hetconv": hetconv}


@dataclass(frozen=True)
class Entry:
    """One figure of one row: the paper's and ours. `error` = ours / paper - 1; None where nothing compares.

    Of a percentage the error is the difference, 0.005 for half a point. `how`: "counted" on real modules, "formula"
    where the paper's figure belongs to no layer that can be built, "measured" for frame rates.
    """

    paper: str
    table: str
    row: str
    column: str
    convention: str
    input: str
    paper_value: float
    ours: float
    error: float | None
    ok: bool | None
    how: str
    reason: str

    def cells(self) -> list[str]:
        is_percentage = self.column.endswith("%")
        error = "-" if self.error is None else f"{100 * self.error:+.3f} {'points' if is_percentage else '%'}"
        ok = {True: "yes", False: "NO", None: "-"}[self.ok]
        paper, ours = (f"{value:.2f}" if is_percentage else f"{value:,}" for value in (self.paper_value, self.ours))
        return [self.row, self.column, paper, ours, error, ok]


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
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entries, what in ((self.rows, ""), (self.alternatives, ", other readings")):
            for e in entries:
                groups.setdefault((f"{e.paper}/{e.table}{what}", e.input), []).append(e)
        return [
            (f"{title}: {', '.join(dict.fromkeys(e.convention for e in entries))}, input {shape}", entries)
            for (title, shape), entries in groups.items()
        ]

    @staticmethod
    def _table(entries: Sequence[Entry], title: str) -> str:
        compared = [e for e in entries if e.ok is not None]
        agree = Counter(e.ok for e in compared)[True]
        notes = [f"{agree} of {len(compared)} figures agree: within 0.5 %, or printing as the paper printed them."]
        readings = _PAPERS[entries[0].paper].READINGS
        notes += [f"[{name}]: {what}." for name, what in readings.items() if any(f"[{name}]" in e.row for e in entries)]
        rows_of: dict[str, dict[str, None]] = {}
        for e in entries:
            rows_of.setdefault(e.reason, {})[e.row] = None
        notes += [f"{', '.join(rows)}: {reason}." for reason, rows in rows_of.items() if reason]
        if formulas := dict.fromkeys(e.convention for e in entries if e.how == "formula"):
            notes.append(f"By a formula, of no layer that can be built: {', '.join(formulas)}. The real layers below.")
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
    figures = Figures()
    for row in (r for slug in chosen if counts for r in _rows(slug)):
        paper = _PAPERS[row.slug.split("/")[0]]
        networks[row.model_id] = paper.NETWORKS[row.model_id].reference
        entries = _entries(row, row.model_id, size, figures)
        rows += entries
        unexpected += [f"{row.row} {e.column}" for e in entries if e.ok is False and row.expected]
        for other, name in paper.ALTERNATIVES.get(row.model_id, {}).items():
            networks[other] = paper.NETWORKS[other].reference
            alternatives += _entries(row, other, size, figures, name=name)
        if row.convention in _formulas(paper):
            counted = replace(row, convention=paper.COUNTED, params_convention="")
            alternatives += _entries(counted, row.model_id, size, figures, name="real layers")
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
    paper = _PAPERS.get(slug.split("/")[0])
    known, formulas = getattr(paper, "NETWORKS", {}), _formulas(paper)
    return [
        row.model_id
        for row in _rows(slug)
        if row.model_id not in known or not (row.convention in CONVENTIONS or row.convention in formulas)
    ]


def _formulas(paper: Any) -> dict[str, Any]:
    """Convention -> function (network, recorded forward) -> what has `.params` and `.flops`, of no real layer."""
    formulas: dict[str, Any] = getattr(paper, "FORMULAS", {})
    return formulas


class Figures:
    """The figures of the papers' networks; each is built and run once per input, whatever the convention."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str, tuple[int, ...]], Recording] = {}
        self._found: dict[tuple[str, str, str, tuple[int, ...]], Any] = {}

    def of(self, paper: str, model_id: str, convention: str, shape: tuple[int, ...]) -> tuple[Any, str]:
        """(what has `.params`, `.flops`, `.madd`, how it was found)."""
        network, formula = _PAPERS[paper].NETWORKS[model_id], _formulas(_PAPERS[paper]).get(convention)
        run, key = (paper, model_id, shape), (paper, model_id, convention, shape)
        if run not in self._runs:
            self._runs[run] = record(network.build("meta"), torch.empty(1, *shape, device="meta"))
        if key not in self._found:
            recording = self._runs[run]
            self._found[key] = formula(network, recording) if formula else count_recorded(recording, convention)
        return self._found[key], "formula" if formula else "counted"


def _entries(
    row: PrintedRow, model_id: str, size: tuple[int, int] | None, figures: Figures, *, name: str = ""
) -> list[Entry]:
    """The columns of one row. `name`: of the other reading, where this is one."""
    shape = (row.input[0], *size) if size else row.input
    formulas = _formulas(_PAPERS[row.slug.split("/")[0]])

    def ours(column: str, model_id: str) -> tuple[Any, str, str]:
        convention = (column == "params" and row.params_convention) or row.convention
        rule = (
            f"{row.convention}:{convention}"
            if row.convention in formulas and convention != row.convention
            else convention
        )
        found, how = figures.of(row.slug.split("/")[0], model_id, rule, shape)
        value = getattr(found, column, None)
        if value is None:
            raise BadInput(f"{row.slug}: convention {convention} counts no {COLUMNS[column]}")
        return value, how, convention

    entries = [_entry(row, column, *ours(column, model_id), shape, name) for column in row.values]
    for column in row.reduced:
        less, how, convention = ours(column, model_id)
        dense = _PAPERS[row.slug.split("/")[0]].BASELINES[row.model_id, column]
        pct = 100 * (1 - less / ours(column, dense)[0])
        entries.append(_reduction(row, column, pct, how, convention, shape, name))
    return entries


def _why(row: PrintedRow, column: str, convention: str) -> str:
    """The paper's file's word on a figure of ours that does not agree."""
    reasons = getattr(_PAPERS[row.slug.split("/")[0]], "REASONS", {})
    known: str = reasons.get((row.model_id, column, convention), row.note)
    return known or f"off by more than {100 * row.tolerance:g} %"


def _entry(
    row: PrintedRow, column: str, ours: int, how: str, convention: str, shape: tuple[int, ...], name: str
) -> Entry:
    paper = row.values[column]
    error: float | None = ours / paper - 1
    ok: bool | None = row.agrees(column, ours)
    reason = ""
    if shape != row.input and column != "params":
        error, ok, reason = None, None, _elsewhere(row, shape)
    elif not ok:
        reason = _why(row, column, convention)
    elif abs(ours / paper - 1) > row.tolerance:
        reason = f"{COLUMNS[column]} prints as the paper's {row.printed[column]}"
    return _made(row, name, COLUMNS[column], convention, shape, (paper, ours, error, ok, how, reason))


def _reduction(
    row: PrintedRow, column: str, ours: float, how: str, convention: str, shape: tuple[int, ...], name: str
) -> Entry:
    paper, reason = row.reduced[column], ""
    error: float | None = (ours - paper) / 100
    ok: bool | None = abs(ours - paper) / 100 <= row.tolerance
    if shape != row.input and column != "params":
        error, ok, reason = None, None, _elsewhere(row, shape)
    elif not ok:
        reason = _why(row, column, convention)
    title = f"{COLUMNS[column]} less, %"
    return _made(row, name, title, convention, shape, (paper, ours, error, ok, how, reason))


def _elsewhere(row: PrintedRow, shape: tuple[int, ...]) -> str:
    return f"counted on {shape[1]}x{shape[2]}, printed for {row.input[1]}x{row.input[2]}"


def _made(
    row: PrintedRow, name: str, column: str, convention: str, shape: tuple[int, ...], figures: tuple[Any, ...]
) -> Entry:
    paper, table_name = row.slug.split("/")
    title, where = f"{row.row} [{name}]" if name else row.row, "x".join(map(str, shape))
    return Entry(paper, table_name, title, column, convention, where, *figures)
