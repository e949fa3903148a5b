"""What turns a network's answer into classes, defects and a verdict: thresholds, smallest area, merging, rules.

The class of a pixel, with probabilities p and thresholds t (0 is the background):

    one logit          1 where sigmoid ≥ t_1
    K logits           k = argmax p_j over j ≥ 1, where p_k ≥ t_k; else 0
    no threshold       the largest logit

So the pixels of a class depend on its own threshold alone, and each can be chosen by itself (thresholds.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.classes import DEFECT
from leanconv.train.recipe import Recipe

# A probability for all classes, one of each class but the background, or none: the largest logit wins.
Threshold = float | tuple[float, ...] | None
# The recipe's keys that a run reads when it predicts, and their defaults.
KEYS = {key: getattr(Recipe(steps=1), key) for key in ("min_area", "merge", "max_defects", "max_area", "fail_classes")}


def predicted_classes(logits: Tensor, threshold: Threshold) -> Tensor:
    """`N O H W` logits -> `N H W` class indices; see the head of this file. One logit without threshold takes 0.5."""
    if threshold is None and logits.shape[1] > 1:
        return logits.argmax(1)
    return classes_and_scores(logits, threshold)[0]


def classes_and_scores(logits: Tensor, threshold: Threshold) -> tuple[Tensor, Tensor]:
    """`predicted_classes`, and the probability `N H W` of each pixel's own class; 0 where it has none."""
    if logits.shape[1] == 1:
        likely = logits[:, 0].float().sigmoid()
        classes = (likely >= (0.5 if threshold is None else _each(threshold, 1)[0])).long()
        return classes, likely * classes
    likely, kind = logits.float().softmax(1)[:, 1:].max(1)  # a pixel of a class has the most probable one
    if threshold is None:
        classes = logits.argmax(1)
    else:
        each = torch.tensor(_each(threshold, logits.shape[1] - 1), device=logits.device)
        classes = torch.where(likely >= each[kind], kind + 1, 0)
    return classes, likely * (classes > 0)


def _each(threshold: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    each = threshold if isinstance(threshold, tuple) else (threshold,) * count
    if len(each) != count:
        raise BadInput(f"{len(each)} thresholds for {count} classes: give one each, the background has none")
    return each


@dataclass(frozen=True)
class Rule:
    """What is reported as a defect, and which pictures fail. A number of -1: chosen on validation, or no limit.

    Attributes:
        min_area: pixels of the smallest defect that is reported.
        merge: components of a class that touch once each is grown by `merge / 2` pixels are one defect.
        max_defects, max_area: a picture fails with more defects, or more defect pixels.
        fail_classes: names; any defect of these fails it. Without this and the last two any defect fails it.
    """

    min_area: int = -1
    merge: int = -1
    max_defects: int = -1
    max_area: int = -1
    fail_classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, classes: Sequence[str]) -> Self:
        """The recipe's rule. Raises BadInput for a class that the data does not have."""
        for name in recipe.fail_classes:
            if name not in classes[1:]:
                raise BadInput(f"recipe: fail_classes has {name[:80]!r}: one of {', '.join(classes[1:9])}")
        return cls(**{key: getattr(recipe, key) for key in KEYS})

    def chosen(self, min_area: int, merge: int) -> Self:
        """The rule with these where it leaves them open."""
        return replace(
            self,
            min_area=min_area if self.min_area < 0 else self.min_area,
            merge=merge if self.merge < 0 else self.merge,
        )

    def why_fail(self, found: Sequence[tuple[str, int, int]]) -> str:
        """Why a picture fails, in words; empty if it passes. `found`: name, number and pixels of each class."""
        defects, area = sum(count for _, count, _ in found), sum(pixels for _, _, pixels in found)
        if self.max_defects < 0 and self.max_area < 0 and not self.fail_classes:
            return _defects(defects) if defects else ""
        why = [f"{name}: {count}" for name, count, _ in found if count and name in self.fail_classes]
        if 0 <= self.max_defects < defects:
            why.append(f"{_defects(defects)}, at most {self.max_defects} pass")
        if 0 <= self.max_area < area:
            why.append(f"{area} px, at most {self.max_area} pass")
        return "; ".join(why)


OPEN, EVERY = Rule(), Rule(min_area=0, merge=0)  # all is left to the validation images; every component is a defect


@dataclass(frozen=True)
class Decision:
    """How a run decides: what its metrics.json and recipe.toml say together.

    Attributes:
        classes: names, the background first; empty where they are not known.
        threshold: of the probability of a class; None: the largest logit, of one logit 0.5.
        rule: of defects and pictures.
    """

    classes: tuple[str, ...] = ()
    threshold: Threshold = None
    rule: Rule = EVERY

    def name(self, index: int) -> str:
        """The name of a class; made up where it is not known."""
        if index < len(self.classes):
            return self.classes[index]
        return DEFECT if index == 1 and len(self.classes) <= 2 else f"class{index}"

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each class by its name; empty where the largest logit wins."""
        if self.threshold is None:
            return {}
        names = self.classes[1:] or (self.name(1),)
        return dict(zip(names, _each(self.threshold, len(names)), strict=True))

    def asked(self, threshold: float | str | None, min_area: int | None, merge: int | None) -> Self:
        """The decision with what a user asks for in place of what was chosen. Raises BadInput.

        `threshold`: a number for all classes, or text: `0.4`, or `scratch=0.4,pit=0.6`.
        """
        for key, value in {"min_area": min_area, "merge": merge}.items():
            if value is not None and value < 0:
                raise BadInput(f"{key}={value}: pixels, at least 0")
        rule = replace(
            self.rule,
            min_area=self.rule.min_area if min_area is None else min_area,
            merge=self.rule.merge if merge is None else merge,
        )
        said = self.threshold if threshold is None else self._read(threshold)
        return replace(self, threshold=said, rule=rule)

    def _read(self, asked: float | str) -> Threshold:
        """Thresholds as a user writes them. What is not named stays."""
        text = str(asked)
        if "=" not in text:
            return _probability("threshold", text)
        names = self.classes[1:] or (self.name(1),)
        found = dict(zip(names, _each(0.5 if self.threshold is None else self.threshold, len(names)), strict=True))
        for part in text.split(","):
            name, _, value = part.rpartition("=")
            if name.strip() not in found:
                raise BadInput(
                    f"threshold={text[:80]}: {name.strip()[:40]!r} is no class: one of {', '.join(names[:9])}"
                )
            found[name.strip()] = _probability(f"threshold of {name.strip()}", value)
        return tuple(found.values()) if len(names) > 1 else found[names[0]]

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json keeps: `threshold` of two classes, `thresholds` by name, `min_area`, `merge`."""
        one = list(self.thresholds.values())
        return {
            "threshold": one[0] if len(one) == 1 else None,
            "thresholds": self.thresholds,
            "min_area": self.rule.min_area,
            "merge": self.rule.merge,
        }

    def __str__(self) -> str:
        least = ", ".join(f"{name} {value:.2f}" for name, value in self.thresholds.items()) or "the largest logit"
        return f"threshold {least}; defects from {max(self.rule.min_area, 0)} px, merge {max(self.rule.merge, 0)} px"


def _defects(count: int) -> str:
    return f"{count} defect{'' if count == 1 else 's'}"


def _probability(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise BadInput(f"{what}={text[:40]}: a number between 0 and 1")
    return value
