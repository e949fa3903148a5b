"""The calls of one shape: how they run now, what is known of their speed, and when they go over to an engine."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from leanconv.errors import BadInput
from leanconv.serving.kept import Choice
from leanconv.serving.rule import EAGER, RACE, Known, decide, race_budget_s, race_from_s

if TYPE_CHECKING:
    from leanconv.serving.served import Served

AUTO = "auto"


class Shape:
    """One shape of a `Served`. `form` is None while the model itself runs; `settled`: nothing is left to decide."""

    def __init__(self, owner: "Served", x: Tensor) -> None:
        self.owner, self.words = owner, "x".join(map(str, x.shape))
        self.kept = owner.kept(x)
        self.choice = self.kept.read()
        self.engine = EAGER
        self.form: Callable[..., Tensor] | None = None
        self.settled = False
        self._calls, self._eager_s, self._spent_s = 0, float("inf"), 0.0

    @property
    def lends(self) -> bool:
        """Whether other shapes may use the form."""
        return self.form is not None and _forms().any_shape(self.engine)

    def run(self, x: Tensor) -> Tensor:
        if self.form is not None:
            return self.form(x)  # type: ignore[no-any-return]
        start, cpu = time.perf_counter(), time.process_time()
        answer: Tensor = self.owner.model(x)
        # Another process's load is no reason for a race: wall time, but no more than this process computed.
        took = min(time.perf_counter() - start, time.process_time() - cpu)
        self._calls, self._eager_s, self._spent_s = self._calls + 1, min(self._eager_s, took), self._spent_s + took
        if not self.settled:
            if self.owner.crowded:
                self.settled = True
            elif self.owner.engine == AUTO:
                self._choose(x, answer)
            else:
                self._prepare_asked(x, answer)
        return answer

    def _choose(self, x: Tensor, answer: Tensor) -> None:
        known, left = self._known(), self.owner.calls_left(self._calls)
        word = decide(known, left)
        if word == EAGER:
            self.settled = known.engine == EAGER
            if self.settled:
                self.owner.say(f"engine eager: an earlier race found nothing faster for {self.words}")
        elif word != RACE:
            self._open(x, answer)
        elif self._calls > 1:  # PyTorch prepares itself in the first call, which says little about the next ones
            lender = self.owner.lender()
            if lender is None or not self._took(lender.form, lender.engine, x, answer):
                self._race(x, race_budget_s(known, left))
            self.settled = True

    def _known(self) -> Known:
        seen = self.choice
        spent_s, engine_s = seen.spent_s + self._spent_s, seen.engine_ms / 1e3
        return Known(self._eager_s, self._calls, spent_s, seen.engine, engine_s, seen.open_s, seen.undecided)

    def _open(self, x: Tensor, answer: Tensor) -> None:
        """Open the kept engine. What does not open or agree is forgotten, and raced again when that pays."""
        choice, start = self.choice, time.process_time()
        if not self._took(_forms().opened(self.kept, choice), choice.engine, x, answer):
            self.owner.say(f"engine eager: {choice.engine} of {self.kept.folder} does not open here any more")
            self.choice = Choice()
            return
        self.settled = True
        if not choice.open_s:
            self.choice = replace(choice, open_s=time.process_time() - start)
            self.kept.write(self.choice)
        self.owner.say(
            f"engine {choice.engine}: {choice.engine_ms:.3g} ms for {self.words}, {_gain(choice)} as fast as eager; "
            f"kept in {self.kept.place} by an earlier race"
        )

    def _race(self, x: Tensor, budget_s: float) -> None:
        say, eager_s = self.owner.say, self._eager_s
        ms = f"{eager_s * 1e3:.3g} ms for {self.words}"
        say(f"engine eager so far, {ms}; looking for a faster one, at most about {budget_s:.0f} s")
        try:
            found = _forms().raced(self.owner.model, x, budget_s)
        except BadInput as error:
            say(f"engine eager: {error}")
            return
        winner, given = found.choices.winner, found.choices.rows[0]
        eager_ms = given.timing.median_ms if given.timing else eager_s * 1e3
        took = f"raced for {found.choices.seconds:.0f} s"
        if found.choices.undecided:
            self.choice, self._spent_s = Choice(undecided=self.choice.undecided + 1), 0.0
            self.kept.write(self.choice)
            names = found.choices.missed[0]
            why = f"no time was left for {names}" if names else "the times vary too much to tell"
            again = f"engines are raced again after {race_from_s(self.choice.undecided):.0f} s of PyTorch"
            say(f"engine eager: {why}; {took}; {again}, or name one with --engine{self.kept.remark}")
            return
        self.choice = Choice(engine=winner.engine, eager_ms=eager_ms)
        if winner.engine == EAGER or winner.timing is None:
            self.kept.write(self.choice)
            say(f"engine eager: nothing is faster for {self.words} beyond noise; {took}{self.kept.remark}")
            return
        self.choice = replace(self.choice, engine_ms=winner.timing.median_ms)
        self.form, self.engine = found.form, winner.engine
        self.kept.store(self.choice, getattr(self.form, "store", None))
        say(
            f"engine {self.engine}: {self.choice.engine_ms:.3g} ms for {self.words}, {_gain(self.choice)} as fast as "
            f"eager; {took}{self.kept.remark}"
        )

    def _prepare_asked(self, x: Tensor, answer: Tensor) -> None:
        """Go over to the engine that was asked for. Raises BadInput if it cannot run the model."""
        self.settled = True
        asked, lender, forms = self.owner.engine, self.owner.lender(self.owner.engine), _forms()
        if lender is not None and self._took(lender.form, asked, x, answer):
            return
        kept = self.choice.engine == asked and self._took(forms.opened(self.kept, self.choice), asked, x, answer)
        if not kept:
            try:
                self.form, self.engine = forms.prepared(self.owner.model, x, asked), asked
            except BadInput as error:
                raise BadInput(f"--engine {asked}: {error}; say --engine auto") from error
            self.kept.store(Choice(engine=asked), getattr(self.form, "store", None))
        self.owner.say(f"engine {asked}: as asked, for {self.words}{f'; kept in {self.kept.place}' if kept else ''}")

    def _took(self, form: Callable[..., Tensor] | None, engine: str, x: Tensor, answer: Tensor) -> bool:
        """Use a form from now on, if there is one and its answer is the model's by the rule of `optimize`."""
        if form is None or not _forms().agrees(form, self.owner.model, x, answer):
            return False
        self.form, self.engine = form, engine
        return True

    def close(self) -> float:
        """Keep the seconds that plain PyTorch took at a shape without a choice, and return them."""
        if not self.choice.engine and self.owner.engine == AUTO:
            self.choice = replace(self.choice, spent_s=self.choice.spent_s + self._spent_s)
            self.kept.write(self.choice)
        spent, self._spent_s = self._spent_s, 0.0
        return spent


def _forms() -> Any:
    """The engines' side. One picture never needs it, and it takes as long to load as a third of PyTorch."""
    from leanconv.serving import forms

    return forms


def _gain(choice: Choice) -> str:
    return f"{choice.eager_ms / max(1e-9, choice.engine_ms):.2g} times"
