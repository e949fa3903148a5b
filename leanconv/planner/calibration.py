"""Calibration batches: a few of the user's pictures, read once, and what the original network answers to them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.planner.divergence import Divergence, kind_of
from leanconv.running import Inputs, call, cloned, shapes, tensors, watched

# (the network's outputs, the batch as `data` gives it) -> a scalar, the mean over the batch.
Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Batch:
    """`inputs`: what the network takes; `whole`: the batch as `data` gave it; `count`: its pictures."""

    inputs: Any
    whole: Any
    count: int


class Calibration:
    """The batches, the original's answers, and the harm of a changed network.

    Harm: with a `loss`, its mean less the original's. Without, the divergence of the outputs from the original's.
    Attributes: images: how many. how: the harm in words. notes: remarks for the user. own_loss: of the original, with a
        `loss`; else None.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], loss: Loss | None = None) -> None:
        self.batches, self._loss = list(batches), loss
        self.images = sum(batch.count for batch in self.batches)
        self.notes = []
        if self.images < 16:
            self.notes.append(f"harm is from {self.images} image{'s' * (self.images != 1)} only: give more to trust it")
        with watched(model):
            self._answers = [_answer(model, batch) for batch in self.batches]
        if not any(answer and answer[0].numel() for answer, _ in self._answers):
            raise BadInput("the model returned no floating-point tensor on the calibration data: there is no harm")
        for answer, _ in self._answers:
            if not all(bool(t.isfinite().all()) for t in answer):
                raise BadInput("the model's outputs on the calibration data have NaN or infinite values in them")
        self.kind = "loss" if loss else kind_of(self._answers[0][0])
        self.how = "loss less the original's" if loss else self.kind
        self.own_loss = self._mean_loss(self._answers) if loss else None
        if self.own_loss is not None and not math.isfinite(self.own_loss):
            raise BadInput(f"the model's own loss on the calibration data is {self.own_loss}: there is no harm")

    def harm(self, model: nn.Module) -> float:
        """The harm of a changed network, in eval mode; infinite where it gives NaN. Lower is better."""
        with watched(model):
            answers = [_answer(model, batch) for batch in self.batches]
        if not all(bool(t.isfinite().all()) for answer, _ in answers for t in answer):
            return float("inf")
        if self.own_loss is not None:
            harm = self._mean_loss(answers) - self.own_loss
            return harm if math.isfinite(harm) else float("inf")
        sums = Divergence(self.kind)
        for (answer, _), (own, _) in zip(answers, self._answers, strict=True):
            sums.add(answer, own)
        return sums.value

    def _mean_loss(self, answers: Sequence[tuple[list[Tensor], Any]]) -> float:
        assert self._loss is not None
        total = 0.0
        with torch.no_grad():
            for batch, (_, outputs) in zip(self.batches, answers, strict=True):
                total += _number(self._loss(outputs, batch.whole)) * batch.count
        return total / self.images


def _number(loss: Any) -> float:
    """What a loss returns. Raises BadInput for anything but one number."""
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise BadInput(f"loss returned {got}: it has to return one number, the mean over the batch") from error


def read_batches(data: Any, inputs: Inputs, most: int) -> list[Batch]:
    """The first `most` pictures of `data`, cut to whole pictures.

    Args:
        data: batches as the model takes them, or one batch as a tensor. A batch that is a tuple or list, where `inputs`
            is one tensor: its first is the model's input, the others (labels) are for a `loss`.
    Raises: BadInput for no batches, for something else, and for NaN in them.
    """
    if isinstance(data, Tensor):
        data = [data]
    if isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        raise BadInput(
            f"data={type(data).__name__}: give batches of calibration images (a list, a DataLoader), or one tensor"
        )
    found: list[Batch] = []
    left = most
    for whole in data:
        if left <= 0:
            break
        batch = _batch(whole, inputs, left)
        if batch.count:
            found.append(batch)
            left -= batch.count
    if not found:
        raise BadInput("data has no calibration image; a few dozen are enough, and need no labels")
    return found


def divided(batches: Sequence[Batch], images: int) -> tuple[list[Batch], list[Batch]]:
    """Pictures that layers are fitted on, and others that judge them: every other picture, if there are 2·`images`.

    Of fewer pictures the first `images` do both, and of batches that cannot be cut.
    """
    if sum(batch.count for batch in batches) < 2 * images or not all(map(_can_be_cut, batches)):
        both = _first(batches, images)
        return both, both
    found: tuple[list[Batch], list[Batch]] = [], []
    for which, part in enumerate(found):
        at = 0
        for batch in batches:
            part += _part(batch, slice((which + at) % 2, None, 2))
            at += batch.count
    return _first(found[0], images), _first(found[1], images)


def _can_be_cut(batch: Batch) -> bool:
    """Whether the network's inputs are in containers that `_cut` opens."""
    return len(tensors(_cut(batch.count, slice(0))(batch.inputs))[0]) == 0


def _first(batches: Sequence[Batch], images: int) -> list[Batch]:
    found: list[Batch] = []
    for batch in batches:
        found += _part(batch, slice(0, images - sum(each.count for each in found)))
    return found


def _part(batch: Batch, rows: slice) -> list[Batch]:
    """These pictures of a batch, as a list of one; none where there are none."""
    count = len(range(*rows.indices(batch.count)))
    if count == batch.count:
        return [batch]
    cut = _cut(batch.count, rows)
    return [Batch(cut(batch.inputs), cut(batch.whole), count)] if count else []


def _batch(whole: Any, inputs: Inputs, most: int) -> Batch:
    given = whole[0] if isinstance(inputs, Tensor) and isinstance(whole, list | tuple) and whole else whole
    if isinstance(inputs, Mapping) and isinstance(given, Mapping):
        given = {key: given[key] for key in inputs if key in given}
    found = tensors(given)
    if not found or not found[0].dim():
        raise BadInput(f"a batch of data has no tensor in it: {type(whole).__name__}")
    axes, wanted = ([t.dim() for t in tensors(each)] for each in (given, inputs))
    if axes != wanted:
        raise BadInput(
            f"a batch of data is {shapes(given)}, where the model's inputs are {shapes(inputs)}: give whole batches, "
            "such as [images] or [(images, labels)]"
        )
    count = len(found[0])
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in found):
        raise BadInput(f"a batch of data {shapes(given)} has NaN or infinite values in it")
    if count > most:
        cut = _cut(count, slice(most))
        given, whole, count = cut(given), cut(whole), most
    return Batch(given, whole, count)


def _cut(count: int, rows: slice) -> Callable[[Any], Any]:
    """A function that leaves those rows of everything that has `count` of them."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.dim() and len(value) == count else value
        if isinstance(value, Mapping):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(cut, value))
        if isinstance(value, list | tuple):
            return type(value)(cut(item) for item in value)
        return value

    return cut


def _answer(model: nn.Module, batch: Batch) -> tuple[list[Tensor], Any]:
    """The floating-point tensors of the network's outputs, and the outputs."""
    outputs = call(model, cloned(batch.inputs))
    return [t.detach() for t in tensors(outputs) if t.is_floating_point()], outputs
