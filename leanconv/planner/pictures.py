"""Calibration batches from a data reference or a run folder: pictures as the network meets them in evaluation."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.int8.calibration import MOST
from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.augment import to_float
from leanconv.train.data.image_files import images_in
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.labelled import Labelled, prepared
from leanconv.train.data.padding import mirror, pad_to
from leanconv.train.data.unlabelled import is_unlabelled
from leanconv.train.inference.tiles import TILE
from leanconv.train.tasks.task import find_task, open_run_data, open_split, run_size

BATCH, BATCH_PIXELS = 32, 1 << 19  # the most pictures, and pixels, of a batch


def picture_batches(
    ref: str, model: nn.Module, *, run: RunFolder | None = None, split: str = "train", size: int = 224, most: int = 128
) -> list[Tensor]:
    """Up to `most` pictures, spread evenly over a split, as batches `N 3 H W` of float32 on the model's device.

    Pictures with masks keep their size, padded to what the network needs; others become squares of `size`. A folder of
    images alone has no splits.

    Args:
        run: the folder that the model came from; its task, size and classes go before what the data looks like.
    Raises: BadInput for data that cannot be read.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    multiple = getattr(model, "size_multiple", 32)
    pictures = (to_float(each)[None] for each in _pictures(ref, run, split, size, most, multiple))
    return [batch.to(device) for batch in _batches(pictures)]


def camera_frames(ref: str, run: RunFolder, split: str, most: int = MOST) -> list[dict[str, Tensor]]:
    """Up to `most` pictures of a split as a file for cameras takes them: uint8 `1 H W 3`, of at most a tile."""
    return [
        {"image": _middle(each, TILE, TILE).permute(1, 2, 0)[None].contiguous()}  # 3 H W -> 1 H W 3
        for each in _pictures(ref, run, split, 0, most)
    ]


def run_of(reference: str) -> RunFolder | None:
    """The run folder that a model reference names, whose task and size its data is read by."""
    if not os.path.isdir(reference):
        return None
    run = RunFolder.open(reference)
    return run if run.read_model().task else None


def of_size(batches: Sequence[Tensor], height: int, width: int) -> list[Tensor]:
    """The pictures `N 3 H W` in one size: larger ones are cut to their middle, smaller ones mirrored."""
    found = []
    for batch in batches:
        rows = mirror(0, max(height, batch.shape[2]), batch.shape[2])
        columns = mirror(0, max(width, batch.shape[3]), batch.shape[3])
        found.append(_middle(batch[..., rows, :][..., columns], height, width))
    return found


def _middle(picture: Tensor, height: int, width: int) -> Tensor:
    top, left = (max(0, (have - most) // 2) for have, most in zip(picture.shape[-2:], (height, width), strict=True))
    return picture[..., top : top + height, left : left + width]


def _pictures(ref: str, run: RunFolder | None, split: str, size: int, most: int, multiple: int = 1) -> Iterator[Tensor]:
    """Up to `most` pictures, uint8 `3 H W`, spread evenly over a split. Raises BadInput for data that has none."""
    if is_unlabelled(ref):
        paths = images_in(Path(os.path.expanduser(ref))).images
        reader = ImageReader(run.read_model().bits if run else None, lambda: ((path, str(path)) for path in paths))
        size = run_size(run) if run else size
        yield from (prepared(reader.read(paths[place], str(paths[place])), size) for place in _spread(len(paths), most))
        return
    samples: Any = open_run_data(run, ref, split) if run else open_split(ref, split, task=find_task(ref), size=size)
    if not len(samples):
        raise BadInput(f"data {ref!r} has no image in its {split} split")
    for place in _spread(len(samples), most):
        if isinstance(samples, Labelled):
            yield samples.square(place)
        else:
            yield pad_to(samples[place].image[None], multiple)[0]


def _spread(count: int, most: int) -> list[int]:
    kept = min(most, count)
    return [index * count // kept for index in range(kept)]


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
