"""reproduce: a paper's table beside our own figures, from real modules counted under a named convention."""

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

# Paper (the first half of a slug) -> the module that has its NETWORKS, ALTERNATIVES and READINGS; and RATIOS where
# nothing but ratios is known of a paper's tables.
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
    """Set a paper's printed figures beside ours.

    Every network is built from its real modules and counted under the convention that the table's digits fit; a figure
    is ok within 0.5 %, or when ours prints as the paper printed it (rounded or truncated).

    Args:
        selection: a table ("splconv/table1"), a paper ("splconv"), or "all" that can be reproduced.
        counts, time: count Params, Flops and MAdd; measure frames per second beside the printed ones.
        size: H, W instead of the table's; counts then only show ours. Times are measured at the one or the other.
        device, batch, budget_s, min_rounds, clock: for `time`; seconds per table, the least number of rounds, and the
            clock of `measure.latency.interleave`.
        progress: called with what is counted or measured and the share done, 0..1.
    Raises: UnknownName for a table nobody knows, BadInput for one whose networks are not built here, or without FPS;
        MissingExtra where a library that makes a named table's networks is not installed ("all" leaves it out).
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
    """What was counted so far. `lenient`: a table whose library is missing is left out rather than an error."""

    size: tuple[int, int] | None
    lenient: bool
    left_out: dict[str, str]
    rows: list[Entry] = field(default_factory=list)
    alternatives: list[Entry] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)

    def count(self, chosen: list[str], progress: Progress | None) -> None:
        """Count every row of the tables, one after the other."""
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
    """The tables whose networks, all of them, can be built here."""
    return [slug for slug in _known() if _missing(slug) == []]


def select(selection: str) -> tuple[list[str], list[str]]:
    """(the tables that a selection names, the known ones it would name but whose networks are not built here)."""
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
    """The printed tables, and those of which only ratios are known."""
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
