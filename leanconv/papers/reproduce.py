"""`reproduce`: compare a paper's table with our figures, counted on real modules by a named convention."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from leanconv.errors import BadInput, MissingExtra, UnknownName
from leanconv.measure.counting.conventions import CONVENTIONS
from leanconv.papers import fuseconv, hetconv, inception_dw, odconv, sic, spconv, splconv
from leanconv.papers.entry import Entry, entries_of
from leanconv.papers.figures import Figures, formulas
from leanconv.papers.printed import PrintedRow, printed_rows, slugs
from leanconv.papers.reproduction import Reproduction
from leanconv.papers.timing import Progress, Rates, measure_rates
from leanconv.registry import nearest

# Paper (the first half of a slug) -> the module with its NETWORKS, ALTERNATIVES and READINGS. A module has RATIOS if
# only ratios of the paper's tables are known.
_PAPERS: dict[str, Any] = {
    "splconv": splconv,
    "hetconv": hetconv,
    "fuseconv": fuseconv,
    "inception_dw": inception_dw,
    "odconv": odconv,
    "spconv": spconv,
    "sic": sic,
}
NOT_BUILT = "its networks are not built here"


def reproduce(
    selection: str = "all",
    *,
    counts: bool = True,
    time: bool = False,
    size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    batch: int = 1,
    budget_s: float = 15.0,
    min_rounds: int = 3,
    clock: str = "wall",
    progress: Progress | None = None,
) -> Reproduction:
    """Compare a paper's printed figures with ours.

    Every network is built from real modules and counted by the convention that fits the table's digits. A figure is ok
    if it is within 0.5 %, or if it equals the printed one when rounded or truncated.

    Args:
        selection: a table ("splconv/table1"), a paper ("splconv"), or "all" reproducible tables.
        counts: count Params, Flops and MAdd.
        time: measure frames per second.
        size: H, W that replace the table's. Counts are then shown without a comparison.
        device, batch: for `time`.
        budget_s, min_rounds, clock: for `time`: seconds per table, fewest rounds, clock of `interleave`.
        progress: called with the current step and the share done, 0..1.
    Raises: UnknownName for an unknown table. BadInput for a table without networks here, or without frame rates.
        MissingExtra if a table's networks need a missing library ("all" skips the table).
    """
    if not (counts or time):
        raise BadInput("nothing to reproduce: ask for counts, time, or both")
    chosen, missing = select(selection)
    timed = [slug for slug in chosen if _rows(slug) and all(row.fps for row in _rows(slug))]
    if size is not None:
        for slug in chosen:
            _check_size(slug, size)
    if time and not timed:
        raise BadInput(f"{selection}: the paper prints no frame rates; leave --time away")
    found = _Found(size, selection == "all", dict.fromkeys(missing, NOT_BUILT))
    if counts:
        found.count(chosen, progress)
    rates = []
    for slug in timed if time else ():
        printed = _rows(slug)
        rates.append(
            measure_rates(
                printed,
                _paper(slug).NETWORKS,
                size or printed[0].input[1:],
                device=device,
                batch=batch,
                budget_s=budget_s,
                min_rounds=min_rounds,
                clock=clock,
                progress=progress,
            )
        )
    return found.result(rates)


@dataclass
class _Found:
    """The counts so far. `lenient`: skip a table if its library is missing, instead of raising."""

    size: tuple[int, int] | None
    lenient: bool
    left_out: dict[str, str]
    rows: list[Entry] = field(default_factory=list)
    alternatives: list[Entry] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)

    def count(self, chosen: list[str], progress: Progress | None) -> None:
        """Count every row of the tables."""
        jobs: list[tuple[str, str, Callable[[], None]]] = []
        for slug in chosen:
            jobs += [(slug, row.row, lambda row=row: self._row(row)) for row in _rows(slug)]  # type: ignore[misc]
            jobs += [(slug, r.row, lambda r=r: self._ratio(r)) for r in _ratios(slug)]  # type: ignore[misc]
        for i, (slug, name, job) in enumerate(jobs):
            if progress:
                progress(f"{slug} {name}", i / len(jobs))
            if slug in self.left_out:
                continue
            try:
                job()
            except MissingExtra as error:
                if not self.lenient:
                    raise
                self.left_out[slug] = str(error)
        if progress:
            progress("counted", 1.0)

    def _row(self, row: PrintedRow) -> None:
        paper = _paper(row.slug)
        entries = entries_of(row, paper, row.model_id, self.size, self.figures)
        self.networks[row.model_id] = paper.NETWORKS[row.model_id].reference
        self.rows += entries
        self.unexpected += [f"{row.row} {e.column}" for e in entries if e.ok is False and row.expected]
        for other, name in paper.ALTERNATIVES.get(row.model_id, {}).items():
            self.networks[other] = paper.NETWORKS[other].reference
            self.alternatives += entries_of(row, paper, other, self.size, self.figures, name=name)
        if row.convention in formulas(paper):
            real = replace(row, convention=paper.COUNTED, params_convention="")
            self.alternatives += entries_of(real, paper, row.model_id, self.size, self.figures, name="real layers")

    def _ratio(self, ratio: sic.Ratio) -> None:
        entry, *others = sic.ratio_entries(ratio, self.size, self.figures)
        self.rows.append(entry)
        self.alternatives += others
        self.networks |= {name: network.reference for name, network in sic.networks_of(ratio).items()}

    def result(self, rates: list[Rates]) -> Reproduction:
        return Reproduction(
            tuple(self.rows),
            tuple(self.alternatives),
            self.networks,
            {name: paper.READINGS for name, paper in _PAPERS.items()},
            tuple(rates),
            tuple(self.unexpected),
            self.left_out,
        )


def reproducible() -> list[str]:
    """Return the tables whose networks can all be built here."""
    return [slug for slug in _known() if _missing(slug) == []]


def select(selection: str) -> tuple[list[str], list[str]]:
    """Return the selected tables that can be built here, and the selected ones that cannot."""
    known, built = _known(), reproducible()
    if selection == "all":
        return built, [slug for slug in known if slug not in built]
    named = [slug for slug in known if selection in (slug, slug.split("/")[0])]
    if not named:
        papers = list(dict.fromkeys(slug.split("/")[0] for slug in known))
        only = [slug for slug in known if slug not in built]
        raise UnknownName(
            f"unknown table {selection!r}{nearest(selection, [*known, *papers, 'all'])}; "
            f"can be reproduced: {', '.join(built)}"
            + (f"; known as printed figures only: {', '.join(only)}" if only else "")
        )
    if not set(named) & set(built):
        raise BadInput(
            f"{selection}: its networks are not built here yet ({', '.join(_missing(named[0])[:3])}, ...); "
            f"can be reproduced: {', '.join(built)}"
        )
    return [slug for slug in named if slug in built], [slug for slug in named if slug not in built]


def _known() -> list[str]:
    """Return the printed tables, and those with known ratios only."""
    ratios = [f"{name}/{r.table}" for name, paper in _PAPERS.items() for r in getattr(paper, "RATIOS", ())]
    return list(dict.fromkeys([*slugs(), *ratios]))


def _paper(slug: str) -> Any:
    return _PAPERS.get(slug.split("/")[0])


def _rows(slug: str) -> list[PrintedRow]:
    return [row for row in printed_rows() if row.slug == slug]


def _ratios(slug: str) -> list[sic.Ratio]:
    return [r for r in getattr(_paper(slug), "RATIOS", ()) if slug.endswith(f"/{r.table}")]


def _check_size(slug: str, size: tuple[int, int]) -> None:
    paper = _paper(slug)
    ids = [row.model_id for row in _rows(slug)] or [r.dense for r in _ratios(slug)]
    multiple = getattr(paper.NETWORKS[ids[0]].build("meta"), "size_multiple", 1)
    if any(side < 1 or side % multiple for side in size):
        raise BadInput(f"{slug}: H and W must be multiples of {multiple}, got {size[0]}x{size[1]}")


def _missing(slug: str) -> list[str]:
    paper = _paper(slug)
    known, rules = getattr(paper, "NETWORKS", {}), formulas(paper)
    return [
        row.model_id
        for row in _rows(slug)
        if row.model_id not in known or not (row.convention in CONVENTIONS or row.convention in rules)
    ]
