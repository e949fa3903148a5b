"""Prepare the forms of one `optimize` within its budget, verify them against the model, and time them."""

import math
import time
from collections.abc import Callable, Sequence

import torch

from leanconv.agreement import incomparable
from leanconv.deploy.failures import root_cause
from leanconv.deploy.int8 import Calibration
from leanconv.deploy.int8.costly import SECONDS, Layer, costly_layers, most
from leanconv.engine import race as racing
from leanconv.engine import workbench
from leanconv.engine.budget import Budget
from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.candidates import EAGER
from leanconv.engine.choices import Choice, faster
from leanconv.engine.fused.lowering.report import TuningReport
from leanconv.engine.race import Entry
from leanconv.engine.schedule import Schedule, Waiting
from leanconv.engine.workbench import Workbench
from leanconv.progress import Progress

Variant = tuple[Candidate, torch.dtype | None]
# An engine may always autotune for this many seconds, however many others wait.
LEAST_MEASURING_S = 4.0


class Preparation:
    """One row for each variant in table order, and the entries of the correct forms.

    Attributes:
        given: the given model. Its row is the first of the table.
        rows: the rows of all variants, tried or skipped.
    """

    def __init__(
        self, bench: Workbench, budget: Budget, variants: Sequence[Variant], *, first: torch.dtype | None
    ) -> None:
        """`first`: the number type whose variants are tried first."""
        self.bench, self.budget = bench, budget
        self.given = Entry(Choice(EAGER, error=0.0), bench.model, True, bench.forward_s)
        tried = {variant: Choice(variant[0].name, _word(variant[1])) for variant in variants}
        self.rows = (self.given.row, *tried.values())
        self._entries = {0: self.given}  # row number -> entry
        self._field = [self.given]  # entries of the next race
        self._sure = [self.given]  # entries that were correct on all trial inputs
        waiting: list[Waiting] = []
        for place, ((candidate, dtype), row) in enumerate(tried.items(), 1):
            row.note = bench.obstacle or candidate.why_not(bench, dtype) or ""
            if not row.note:
                waiting.append(Waiting(place, candidate, dtype))
        self.schedule = Schedule(bench, budget, waiting, first=first)

    @property
    def entries(self) -> list[Entry]:
        """The correct forms in table order."""
        return [entry for _, entry in sorted(self._entries.items())]

    def prepare(self, progress: Progress) -> bool:
        """Prepare and verify the waiting candidates that fit into the budget together with the race.

        Returns whether to run a race: the first one, or one with a new form.
        """
        before = len(self._field)
        while (each := self.schedule.next(self.budget.timing(self._field))) is not None:
            row = self.rows[each.place]
            progress.show(row.label)
            if entry := self._tried(row, each):
                self._entries[each.place] = entry
                self._field.append(entry)
            progress.advance()
        return len(self._field) > before or not self.schedule.raced

    def _tried(self, row: Choice, each: Waiting) -> Entry | None:
        """Prepare one candidate and verify it against the model. Any exception becomes its row's note."""
        bench, start, (_, candidate, dtype) = self.bench, time.perf_counter(), each
        expected = self.schedule.estimate(each)
        spare = self.schedule.spare(each, self.budget.timing(self._field))
        bench.measuring_s = min(workbench.MEASURING_S, LEAST_MEASURING_S + max(0.0, spare))
        try:
            form = candidate.prepare(bench, dtype)
            seen, look_s = bench.verify(form, dtype)
        except Exception as error:
            row.note, row.prepare_s = _beside(f"failed: {root_cause(error)}", candidate), time.perf_counter() - start
            return None
        row.prepare_s = time.perf_counter() - start
        self.budget.learn(expected, row.prepare_s)
        row.note_error(seen)
        if dtype is torch.int8 and bench.calibration is not None and not seen.passes:
            row.note = bench.calibration.refusal(seen.relative)
        return Entry(row, form, candidate.any_shape, look_s, dtype) if seen.passes else None

    def race(self, on_part: Callable[[float], object]) -> Entry:
        """Return the fastest among the given model, the winner so far and the new forms.

        The race is kept short if a waiting candidate may still fit into the budget.
        """
        field, budget = [each for each in self.entries if each in self._field], self.budget
        for entry in field:
            entry.row.chosen = False
        until = budget.deadline - budget.trials(field)
        if self.schedule.may_fit_later():
            until = min(until, time.perf_counter() + budget.timing(field) / racing.RACE_SHARE)
        with self.bench.still():
            while not self._proven(winner := racing.race(self.bench, field, until, on_part)):
                field.remove(winner)
        for entry in field:
            if (blocks := _blocks(entry)) and blocks.note:
                entry.row.note += f"; {blocks.note}"
        self._field = [self.given] if winner is self.given else [self.given, winner]
        self.schedule.raced = True
        return winner

    def _proven(self, winner: Entry) -> bool:
        """Whether a winner is correct on all other inputs too. An incorrect form is removed for good."""
        if winner in self._sure:
            return True
        try:
            seen = self.bench.trials.later(winner.form, winner.dtype)
        except Exception as error:  # the form may run on the given values only
            seen = incomparable(root_cause(error))
        if seen.passes:
            self._sure.append(winner)
            return True
        winner.row.chosen = False
        winner.row.note_error(seen)
        self._entries = {place: entry for place, entry in self._entries.items() if entry is not winner}
        return False

    def missed(self) -> tuple[str, float]:
        """Return the engines that the budget did not reach and a budget that would reach them, or ("", 0)."""
        waiting = self.schedule.waiting
        if not waiting:
            return "", 0.0
        needs = {each.place: self.schedule.needs(each) for each in waiting}
        enough = 5 * math.ceil((self.budget.spent + 1.2 * sum(needs.values()) + self.budget.timing(self.entries)) / 5)
        for each in waiting:
            note = f"skipped: needs about {needs[each.place]:.0f} s, {self.budget.left:.0f} s left"
            self.rows[each.place].note = _beside(note, each.candidate)
        return ", ".join(self.rows[place].label for place in sorted(needs)), float(enough)

    def explain_int8(self) -> str:
        """Return what judged the forms in int8, or "". The first that was refused names the layers that cost most."""
        calibration = self.bench.calibration
        tried = [row for row in self.rows if row.dtype == "int8" and row.error is not None]
        if calibration is None or not tried:
            return ""
        refused = [row for row in tried if not calibration.accepts(row.error or 0.0)]
        if refused and self.budget.left and (words := most(self._costly(calibration))):
            refused[0].note += f"; {words}"
        return calibration.judged

    def _costly(self, calibration: Calibration) -> list[Layer]:
        try:
            return costly_layers(self.bench.program, calibration.tensors, min(SECONDS, self.budget.left))
        except Exception:  # a model that cannot be captured
            return []

    def blocks(self, winner: Entry) -> TuningReport | None:
        """Return the winner's table of blocks, or else the first that another entry has."""
        return next((blocks for entry in [winner, *self.entries] if (blocks := _blocks(entry))), None)

    def fallback(self) -> ModelForm:
        """Return the form for calls of other shapes: the folded model if it is correct and not slower."""
        for entry in self.entries:
            if entry.form is self.bench.__dict__.get("_folding", (None,))[0]:
                timing, own = entry.row.timing, self.given.row.timing
                if timing is not None and own is not None and not faster(own, timing):
                    return self.bench.folded
        return self.bench.model


def _beside(note: str, candidate: Candidate) -> str:
    """Append to a row's note what its engine lacks on this machine."""
    return f"{note}; {lacks}" if (lacks := candidate.lacks()) else note


def _blocks(entry: Entry) -> TuningReport | None:
    """Return the table of a fused form. A network's own attribute `blocks` is of another type and does not count."""
    found = getattr(entry.form, "blocks", None)
    return found if isinstance(found, TuningReport) else None


def _word(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")
