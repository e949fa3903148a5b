"""The work of each stage, as functions that tests may replace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import leanconv.convert as convert
from leanconv.convert import Plan
from leanconv.errors import BadInput
from leanconv.planner.lean import speed
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.labelled import LabelledSubject
from leanconv.planner.lean.pictures import PictureSubject
from leanconv.planner.lean.subject import Subject, is_run
from leanconv.train.data.unlabelled import is_unlabelled
from leanconv.train.progress import Reporter


def open_subject(asked: Asked, place: Path, report: Reporter, *, trust_code: bool) -> Subject:
    """The dense network and its data. `place`: where a model that is no run folder is stored.

    Raises: BadInput where a model has no data, and for data that does not fit it.
    """
    if is_unlabelled(asked.data):
        return PictureSubject(asked, place, report, trust_code=trust_code)
    if is_run(asked.model):
        return LabelledSubject.of_run(asked, report, trust_code=trust_code)
    if not asked.data:
        raise BadInput(f"{asked.model} is no run folder and names no data: give --data, labelled or a folder of images")
    return LabelledSubject.of_model(asked, place, report, trust_code=trust_code)


def find_plan(subject: Subject, asked: Asked, place: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan, and what is known of it: one operator in all layers (`--to`), or a search under the budget.

    `place`: the file of what the search has measured so far.
    Raises: BadInput for a budget that nothing meets; it says the nearest.
    """
    where = asked.where or None
    if asked.to:
        return convert.plan(subject.network, subject.inputs, to=asked.to, where=where), {"how": asked.to}
    from leanconv.planner.search import search

    found = search(
        subject.network,
        subject.inputs,
        data=subject.calibration(),
        budget=f"faster={asked.faster:g}x",
        candidates=asked.candidates or None,
        where=where,
        state=place,
        progress=subject.visible,
    )
    chosen = found.search.chosen
    predicted, dense = chosen.predicted["latency"], found.search.dense["latency"]
    return found, {"how": f"search for {asked.faster:g}x", "predicted": dense / predicted, "trial": chosen.to_dict()}


def fit(network: nn.Module, plan: Plan, subject: Subject) -> dict[str, Any]:
    """Swap in place and fit each new layer to what the dense one gives; what it did, layer by layer."""
    images = images_of(subject.calibration())
    return convert.apply_(network, plan, init="fit", data=images, progress=subject.visible).to_dict()


def images_of(batches: Sequence[Any]) -> list[Any]:
    """The images of batches that may be pairs of images and labels."""
    return [batch[0] if isinstance(batch, tuple) else batch for batch in batches]


@dataclass(frozen=True)
class Stages:
    """The functions that the whole way calls.

    Attributes:
        open: the network and its data.
        plan: which layers change, and into what.
        fit: swaps the plan's layers in a copy of the network.
        race: times both networks.
    """

    open: Callable[..., Subject] = open_subject
    plan: Callable[[Subject, Asked, Path], tuple[Plan, dict[str, Any]]] = find_plan
    fit: Callable[[nn.Module, Plan, Subject], dict[str, Any]] = fit
    race: Callable[..., dict[str, Any]] = speed.race
