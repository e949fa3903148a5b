"""Reproduction: the result of `reproduce` as tables, as a summary per paper, and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leanconv.papers.entry import Entry
from leanconv.papers.timing import Rates
from leanconv.table import table


@dataclass(frozen=True)
class Standing:
    """One paper in the summary: numbers of tables, rows, figures and agreeing ones, and reasons for the others."""

    paper: str
    tables: int
    rows: int
    figures: int
    met: int
    not_met: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Reproduction:
    """The result of `reproduce`.

    Attributes:
        rows: one entry per row and column.
        alternatives: entries of other readings of the same rows.
        networks: model id -> reference.
        readings: paper -> name of a reading -> its description.
        rates: measured frame rates.
        unexpected: figures that should agree and do not.
        left_out: table that was not counted -> reason.
    """

    rows: tuple[Entry, ...] = ()
    alternatives: tuple[Entry, ...] = ()
    networks: dict[str, str] = field(default_factory=dict)
    readings: dict[str, dict[str, str]] = field(default_factory=dict)
    rates: tuple[Rates, ...] = ()
    unexpected: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> list[Standing]:
        """One line per paper, over the figures with a comparison."""
        return [self._standing(paper) for paper in dict.fromkeys(e.paper for e in self.rows)]

    def _standing(self, paper: str) -> Standing:
        entries = [e for e in self.rows if e.paper == paper]
        compared = [e for e in entries if e.ok is not None]
        return Standing(
            paper,
            len({e.table for e in entries}),
            len({(e.table, e.row) for e in entries}),
            len(compared),
            sum(e.ok is True for e in compared),
            {f"{e.row} {e.column}": e.reason for e in compared if not e.ok},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON with the key "rows", and with alternatives, references, summary and timings."""
        return {
            "rows": [vars(entry).copy() for entry in self.rows] + [e for rate in self.rates for e in rate.entries()],
            "alternatives": [vars(entry).copy() for entry in self.alternatives],
            "networks": self.networks,
            "timing": [rate.to_dict() for rate in self.rates],
            "summary": [standing.to_dict() for standing in self.summary],
            "unexpected": list(self.unexpected),
            "left_out": self.left_out,
        }

    def __str__(self) -> str:
        parts = [self._table(entries, title) for title, entries in self._tables()]
        parts += [str(rate) for rate in self.rates]
        if len({(e.paper, e.table) for e in self.rows}) > 1:
            parts.append(self.summary_table())
        if self.unexpected:
            parts.append("NOT REPRODUCED, though it should be: " + "; ".join(self.unexpected))
        if self.left_out:
            parts.append("Left out: " + "; ".join(f"{slug}: {why}" for slug, why in self.left_out.items()) + ".")
        return "\n\n".join(parts)

    def summary_table(self) -> str:
        """Format rows, figures and agreements of each paper, with the differences and their reasons below."""
        lines = self.summary
        numbers = [(s.tables, s.rows, s.figures, s.met, len(s.not_met)) for s in lines]
        cells = [[s.paper, *row] for s, row in zip(lines, numbers, strict=True)]
        cells.append(["all", *map(sum, zip(*numbers, strict=True))])
        because: dict[str, list[str]] = {}
        for s in lines:
            for what, reason in s.not_met.items():
                because.setdefault(f"{s.paper}: {reason}", []).append(what)
        notes = [f"{reason} ({', '.join(what)})." for reason, what in because.items()]
        head = ["paper", "tables", "rows", "figures", "agree", "do not"]
        return table(head, cells, title="Summary", note=notes)

    def _tables(self) -> list[tuple[str, list[Entry]]]:
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entries, what in ((self.rows, ""), (self.alternatives, ", other readings")):
            for e in entries:
                groups.setdefault((f"{e.paper}/{e.table}{what}", e.input), []).append(e)
        return [
            (f"{title}: {', '.join(dict.fromkeys(e.convention for e in entries))}, input {shape}", entries)
            for (title, shape), entries in groups.items()
        ]

    def _table(self, entries: Sequence[Entry], title: str) -> str:
        compared = [e for e in entries if e.ok is not None]
        agree = Counter(e.ok for e in compared)[True]
        notes = [f"{agree} of {len(compared)} figures agree: within 0.5 %, or printing as the paper printed them."]
        readings = self.readings.get(entries[0].paper, {})
        notes += [f"[{name}]: {what}." for name, what in readings.items() if any(f"[{name}]" in e.row for e in entries)]
        rows_of: dict[str, dict[str, None]] = {}
        for e in entries:
            rows_of.setdefault(e.reason, {})[e.row] = None
        notes += [f"{', '.join(rows)}: {reason}." for reason, rows in rows_of.items() if reason]
        if formulas := dict.fromkeys(e.convention for e in entries if e.how == "formula"):
            notes.append(f"By a formula, of no layer that can be built: {', '.join(formulas)}. The real layers below.")
        columns = ["row", "column", "paper", "ours", "error", "ok"]
        return table(columns, [e.cells() for e in entries], title=title, note=notes)
