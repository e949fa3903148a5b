"""The verdict: which model to take, how much faster it is at the user's image size, and what it misses. In words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from leanconv.report.chance import best_speed, paired_difference, pixel_difference, same_speed, speed_ratio
from leanconv.report.summary import RunSummary
from leanconv.report.words import BY_KEY, main_score, percent, ranked, signed, three, times

# A loss in the score up to this is small: the faster model is taken. Below `SAME` scores are called the same.
SMALL, SAME = 0.01, 5e-4
# From this many shared images on, an interval says whether a difference is chance.
ENOUGH = 5


@dataclass(frozen=True)
class Verdict:
    """The first lines of a report.

    Attributes:
        headline: which model, and how much faster, in one sentence.
        facts: (what, lines) on speed, accuracy and misses.
        cards: indices of the one or two runs that the page shows first.
        pick: index of the run to take; None if the numbers do not say.
    """

    headline: str
    facts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    cards: tuple[int, ...] = ()
    pick: int | None = None


def decide(runs: Sequence[RunSummary], size: tuple[int, int] | None = None, measured: str = "") -> Verdict:
    """Choose a run by accuracy and measured speed.

    Of all runs whose score is the best one, or below it by at most `SMALL` or by chance, the fastest is taken. It
    stands beside the first run, or beside the best of the others if it is the first run itself.
    `size`: height and width of the images that were timed. `measured`: device and settings of the latency.
    """
    place = {id(run): index for index, run in enumerate(runs)}
    if len(runs) == 1:
        return Verdict(_alone(runs[0], size), _facts(runs[0], None, measured), (0,))
    score, word, _ = main_score(runs)
    speed = best_speed(runs)
    scored, timed = ranked(runs, BY_KEY[score]), ranked(runs, BY_KEY[speed])
    both = [run for run in scored if run in timed]
    known = both or scored or timed
    if not known:
        return Verdict("No model was measured: the remarks below say why.", (), (0, 1))
    pick = _choose(known, score, speed) if both else known[0]
    other = _beside(pick, known, runs, speed)
    if other is None:
        return Verdict(f"Only {pick.name} was measured.", _facts(pick, None, measured), (place[id(pick)],))
    headline, sure = _headline(pick, other, size, speed=speed, score=score, word=word, of=len(runs))
    cards = tuple(sorted((place[id(pick)], place[id(other)])))
    return Verdict(headline, _facts(pick, other, measured), cards, place[id(pick)] if sure else None)


def _choose(known: Sequence[RunSummary], score: str, speed: str) -> RunSummary:
    """The fastest run that is not clearly worse than the most accurate one. `known`: most accurate first."""
    good = [run for run in known if not _clearly_worse(run, known[0], score)]
    fastest = max(good, key=lambda run: run.value(speed))
    equals = [run for run in good if same_speed(run, fastest, speed)]
    return max(equals, key=lambda run: (run.value(score), -_or_inf(run.value("macs"))))


def _beside(pick: RunSummary, known: Sequence[RunSummary], runs: Sequence[RunSummary], speed: str) -> RunSummary | None:
    """The run that the picked one is compared with."""
    others = [run for run in known if run is not pick]
    if not others or runs[0] in others:
        return runs[0] if others else None
    # The first run is picked: beside it stands what is faster, or else what comes nearest in accuracy.
    faster = [run for run in others if run.value(speed) > pick.value(speed)]
    return max(faster, key=lambda run: run.value(speed)) if faster else others[0]


def _clearly_worse(run: RunSummary, best: RunSummary, score: str) -> bool:
    loss = best.value(score) - run.value(score)
    _, half, n = paired_difference(best, run)
    return loss > SMALL and (n < ENOUGH or not loss <= half)


def _headline(
    pick: RunSummary, other: RunSummary, size: tuple[int, int] | None, *, speed: str, score: str, word: str, of: int
) -> tuple[str, bool]:
    """Return the first sentence, and whether it names a run to take."""
    where = f" on images of {size[1]}×{size[0]} px" if size else ""
    among = f", of {of} models" if of > 2 else ""
    ratio = speed_ratio(pick, other, speed)
    gain = pick.value(score) - other.value(score)
    tie = ratio is not None and same_speed(pick, other, speed)
    if ratio is None:
        if math.isfinite(gain):
            higher = (
                f"{word} {abs(gain):.3f} higher than {other.name}"
                if gain > SAME
                else f"the same {word} as {other.name}"
            )
            return f"Take {pick.name}{among}: {higher}. Speed was not measured.", gain > SAME
        return "No model was measured: the remarks below say why.", False
    fast = "as fast as" if tie else f"{times(ratio.value)} as fast as"
    if not math.isfinite(gain):
        return f"{pick.name} runs {fast} {other.name}{where}. Accuracy was not compared.", False
    if not tie and ratio.value < 1:
        lost = f"{word} {gain:.3f} higher"
        return (
            f"Take {pick.name} for accuracy{among}: {lost}. {other.name} is {times(1 / ratio.value)} as fast{where}.",
            True,
        )
    return f"Take {pick.name}{among}: {fast} {other.name}{where}, {_price(pick, other, gain, word)}.", True


def _price(pick: RunSummary, other: RunSummary, gain: float, word: str) -> str:
    """What the picked run gains or loses in accuracy, as the end of a sentence."""
    _, half, n = paired_difference(other, pick)
    if abs(gain) < SAME:
        return f"with the same {word}"
    if n >= ENOUGH and abs(gain) <= half:
        if half > 2 * SMALL:
            return f"and {n} images show no difference in {word}"
        return f"with no clear difference in {word}"
    return f"and {word} {gain:.3f} higher" if gain > 0 else f"and {word} {-gain:.3f} lower"


def _alone(run: RunSummary, size: tuple[int, int] | None) -> str:
    """One run's numbers as a sentence."""
    parts, speed = [], best_speed([run])
    if math.isfinite(run.value(speed)):
        at = f" on images of {size[1]}×{size[0]} px" if size else ""
        parts.append(f"{three(run.value(speed))} frames/s{at}")
    for key, words in (("top1", "top-1 {}"), ("dice", "Dice {} over all pixels"), ("image_dice", "{} per image")):
        if math.isfinite(run.value(key)):
            parts.append(words.format(f"{run.value(key):.3f}"))
    return f"{run.name}: {', '.join(parts)}." if parts else f"Nothing of {run.name} was measured: the remarks say why."


def _facts(pick: RunSummary, other: RunSummary | None, measured: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    runs = [run for run in (pick, other) if run is not None]
    facts = (("Speed", _speed(runs, measured)), ("Accuracy", _accuracy(runs)), ("Misses", _misses(runs)))
    return tuple((what, tuple(lines)) for what, lines in facts if lines)


def _speed(runs: Sequence[RunSummary], measured: str) -> list[str]:
    key = best_speed(runs)
    ms = "fast_ms" if key == "fast_fps" else "ms"
    lines = [
        f"{run.name}: {three(run.value(key))} frames/s, {three(run.value(ms))} ms an image."
        for run in runs
        if math.isfinite(run.value(key))
    ]
    ratio = speed_ratio(runs[0], runs[1], key) if len(runs) == 2 else None
    if ratio is not None and ratio.n > 1:
        lines.append(
            f"Ratio {times(ratio.value)}; {ratio.n} blocks of timing gave {ratio.low:.2f} to {ratio.high:.2f}×."
        )
    if lines and measured:
        how = "optimised" if key == "fast_fps" else "plain PyTorch"
        lines.append(f"{', '.join(measured.split(', ')[:2])}, {how}.")  # the processor and its threads
    return lines


def _accuracy(runs: Sequence[RunSummary]) -> list[str]:
    lines, pick, other = [], runs[0], runs[-1]
    for key, what in (("top1", "Top-1"), ("dice", "Dice over all pixels"), ("image_dice", "Dice per image, the mean")):
        ours, theirs = pick.value(key), other.value(key)
        if not math.isfinite(ours):
            continue
        text = f"{what}: {pick.name} {ours:.3f}"
        if other is not pick and math.isfinite(theirs):
            text += f", {other.name} {theirs:.3f}; difference {signed(ours - theirs)}{_interval(pick, other, key)}"
        lines.append(f"{text}.")
    return lines


def _interval(pick: RunSummary, other: RunSummary, key: str) -> str:
    """The 95 % interval of a difference in words, or nothing if too few images are shared."""
    if key == "dice":
        found = pixel_difference(other, pick)
        return f" (95 % interval {signed(found.low)} to {signed(found.high)})" if found else ""
    mean, half, n = paired_difference(other, pick)
    return f" (95 % interval {signed(mean - half)} to {signed(mean + half)}, {n} images)" if n >= ENOUGH else ""


def _misses(runs: Sequence[RunSummary]) -> list[str]:
    """What each of the runs does not find, and where it gives a false alarm."""
    lines = []
    for run in runs:
        if "top1" in run.scores and run.images:
            wrong = sum(hit < 0.5 for hit in run.images.values())
            lines.append(f"{run.name} is wrong on {wrong} of {len(run.images)} images.")
        if run.found is None:
            continue
        found, parts = run.found, []
        if found.with_defect:
            right = f"; {percent(found.precision)} of what it marks is right" if found.precision >= 0 else ""
            parts.append(f"{run.name} finds {percent(found.pixels)} of the defect pixels{right}.")
            parts.append(f"It finds nothing in {found.without_a_hit} of {found.with_defect} images with a defect.")
        if found.clean:
            parts.append(
                f"{'It' if parts else run.name} marks a defect in {found.false_alarms} of {found.clean} clean images."
            )
        lines.append(" ".join(parts))
    return lines


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf
