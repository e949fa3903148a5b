"""Calibration batches from a data reference or a run folder: pictures as the network meets them in evaluation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.augment import to_float
from leanconv.train.data.labelled import Labelled
from leanconv.train.data.padding import pad_to
from leanconv.train.tasks.task import find_task, open_run_data, open_split

BATCH, BATCH_PIXELS = 32, 1 << 19  # the most pictures, and pixels, of a batch


def picture_batches(
    ref: str, model: nn.Module, *, run: RunFolder | None = None, split: str = "train", size: int = 224, most: int = 128
) -> list[Tensor]:
    """Up to `most` pictures, spread evenly over a split, as batches `N 3 H W` of float32 on the model's device.

    Pictures with masks keep their size, padded to what the network needs; others become squares of `size`.

    Args:
        run: the folder that the model came from; its task, size and classes go before what the data looks like.
    Raises: BadInput for data that cannot be read.
    """
    if run is None:
        samples = open_split(ref, split, task=find_task(ref), size=size)
    else:
        samples = open_run_data(run, ref, split)
    if not len(samples):
        raise BadInput(f"data {ref!r} has no image in its {split} split")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    count = min(most, len(samples))
    places = [index * len(samples) // count for index in range(count)]
    multiple = getattr(model, "size_multiple", 32)
    pictures = (_picture(samples, place, multiple) for place in places)
    return [batch.to(device) for batch in _batches(pictures)]


def _picture(samples: Any, place: int, multiple: int) -> Tensor:
    if isinstance(samples, Labelled):
        return to_float(samples.square(place))[None]
    return pad_to(to_float(samples[place].image)[None], multiple)


def _batches(pictures: Iterator[Tensor]) -> Iterator[Tensor]:
    """Pictures of one size together, in the order in which a batch is full."""
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    for picture in pictures:
        size = tuple(picture.shape[-2:])
        group = waiting.setdefault(size, [])
        group.append(picture)
        if len(group) >= max(1, min(BATCH, BATCH_PIXELS // (size[0] * size[1]))):
            yield torch.cat(waiting.pop(size))
    for group in waiting.values():
        yield torch.cat(group)
