"""The report of a lean network: what was lost and what was won, and whether it is handed over."""

from dataclasses import dataclass
from typing import Any

from leanconv.table import si, table
from leanconv.text import one_line

_MB = 1e6


@dataclass(frozen=True)
class Report:
    """Everything that the stages found.

    Attributes:
        out: the folder.
        asked: the arguments, as lean.json has them.
        facts: name of the score, what was scored, machine.
        stages: what each stage found.
    """

    out: str
    asked: dict[str, Any]
    facts: dict[str, str]
    stages: dict[str, dict[str, Any]]

    @property
    def best(self) -> str:
        """The version that is handed over: "recover", or "fit" where the recovery scored lower or was not asked for."""
        fitted, recovered = self.stages.get("fit"), self.stages.get("recover")
        return "recover" if recovered and fitted and recovered["score"] >= fitted["score"] else "fit"

    @property
    def loss(self) -> float | None:
        """How much the score fell, of the version that is handed over; below 0 where it rose."""
        if self.best not in self.stages:
            return None
        return float(self.stages["dense"]["score"]) - float(self.stages[self.best]["score"])

    @property
    def race(self) -> dict[str, Any] | None:
        """The latest comparison of speeds."""
        return self.stages.get("speed") or self.stages.get("look")

    @property
    def refusal(self) -> str:
        """Why nothing is handed over; empty where the lean network is accepted."""
        if self.stages.get("plan", {}).get("swapped") == 0:
            return "no layer changes by the plan: the dense network stays"
        race = self.race
        if race is not None and race["ratio"]["middle"] <= 1:
            return (
                f"the lean network is not faster: {_speed(race['ratio'])} "
                "the dense one's speed, each on its best engine: the dense network stays"
            )
        if race is not None and undecided(race):
            return (
                f"not decided: the lean network has {_speed(race['ratio'])} the dense one's speed, which may be noise: "
                f"the dense network stays; measure on a quiet machine (leanconv lean {self.out} --resume)"
            )
        limit = self.asked["max_loss"]
        trained = "recover" in self.stages or not self.asked["epochs"]
        if limit is not None and trained and self.loss is not None and self.loss > limit:
            dense, lean = self.stages["dense"]["score"], self.stages[self.best]["score"]
            return (
                f"{self.facts['measure']} fell by {self.loss:.4f}, from {dense:.4f} to {lean:.4f}, and --max-loss is "
                f"{limit:g}: the dense network stays; train longer (--epochs), ask for less speed, or allow more"
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for machines."""
        return {
            "out": self.out,
            "accepted": not self.refusal,
            "refused": self.refusal,
            "version": self.best,
            "loss": self.loss,
            **self.facts,
            "stages": self.stages,
        }

    def __str__(self) -> str:
        rows = [self._scores(), *self._sizes()]
        if self.race is not None:
            rows.append(self._latency(self.race))
        head = ["", "dense", "lean, right after the swap", "lean, recovered", "won or lost"]
        notes = [*self._notes(), *self._next()]
        return table(head, rows, title=self.facts["title"], note=list(map(one_line, notes)))

    def _scores(self) -> list[object]:
        cells = [f"{self.stages[name]['score']:.4f}" if name in self.stages else "-" for name in _VERSIONS]
        loss = self.loss
        change = "-" if loss is None else "as before" if round(loss, 4) == 0 else ""
        change = change or (f"lost {loss:.4f}" if loss and loss > 0 else f"won {-(loss or 0):.4f}")
        return [self.facts["measure"], *cells, change]

    def _sizes(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for key, name, form in _SIZES:
            found = [self.stages.get(version, {}).get(key) for version in _VERSIONS]
            lean = found[2] if found[2] is not None else found[1]
            won = "-" if not lean or not found[0] else _times(found[0] / lean, "fewer" if key != "bytes" else "smaller")
            rows.append([name, *("-" if value is None else form(value) for value in found), won])
        return rows

    def _latency(self, race: dict[str, Any]) -> list[object]:
        dense, lean, ratio = race["dense"], race["lean"], race["ratio"]
        cells = [f"{each['median_ms']:.3g} ({each['engine']})" for each in (dense, lean)]
        version = self.best if "speed" in self.stages else "fit"
        cells[1:] = [cells[1] if name == version else "-" for name in _VERSIONS[1:]]
        spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        word = "faster" if ratio["low"] > 1 else "the speed"
        return ["latency, ms (engine)", *cells, f"{ratio['middle']:.2f}x {word} ({spread})"]

    def _notes(self) -> list[str]:
        notes = [f"{self.facts['measure']}: of {self.facts['judged']}"]
        if (race := self.race) is not None:
            notes.append(
                f"latency: {race['where']}, {race['threads']} threads; the best engine of each network, "
                f"{race['dense']['rounds']} rounds in turns; the bounds are those of a 95 % interval"
            )
        if plan := self.stages.get("plan"):
            kinds = ", ".join(f"{to} in {count}" for to, count in plan["operators"].items()) or "nothing"
            notes.append(
                f"plan: {kinds}, as they were in {plan['kept']} of {plan['swapped'] + plan['kept']} convolutions"
            )
        asked = self.asked["faster"]
        if race is not None and asked and race["ratio"]["middle"] < asked:
            notes.append(f"asked for: {asked:g}x; measured: {_speed(race['ratio'])}, which is less")
        if "recover" in self.stages and self.best == "fit":
            notes.append("the recovery scored lower than the fitted weights, which are kept")
        if self.asked["max_loss"] is None:
            notes.append("no limit was set: any loss of the score is accepted (--max-loss)")
        took = ", ".join(f"{name} {found['seconds']:.0f} s" for name, found in self.stages.items())
        return [*notes, f"time: {took}"]

    def _next(self) -> list[str]:
        if self.refusal:
            return []
        lines = [f"{self.out} is the lean network, a run folder for every command: leanconv eval {self.out}"]
        if exported := self.stages.get("export"):
            lines.append(
                f"{exported['path']}: {exported['format']}, {exported['bytes'] / _MB:.3g} MB, {exported['proof']}"
            )
        return lines


def undecided(race: dict[str, Any]) -> bool:
    """Whether a comparison shows a gain that its own interval doubts."""
    ratio = race["ratio"]
    return bool(ratio["low"] <= 1 < ratio["middle"])


def _speed(ratio: dict[str, float]) -> str:
    return f"{ratio['middle']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


_VERSIONS = ("dense", "fit", "recover")


def _times(factor: float, word: str) -> str:
    return f"{factor:.2f}x {word}" if factor >= 1 else f"{1 / factor:.2f}x {'more' if word == 'fewer' else 'larger'}"


_SIZES = (
    ("params", "parameters", si),
    ("macs", "MACs", si),
    ("bytes", "weights file, bytes", si),
)
