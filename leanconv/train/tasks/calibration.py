"""Images without labels, as a network takes them: what `apply_(init="fit")` is calibrated on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.augment import to_float
from leanconv.train.data.image_files import images_in
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.labelled import judge_shape, prepared
from leanconv.train.data.unlabelled import is_unlabelled
from leanconv.train.tasks.task import find_task, open_split

BATCH = 32


class Pictures:
    """Batches of float32 `n 3 S S`, again and again; uint8 in memory.

    Args:
        images: uint8 `N 3 S S`.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.images.split(BATCH):
            yield to_float(part)


def pictures(ref: str, size: int, count: int, *, split: str = "train") -> Pictures:
    """`count` images of a data reference, spread evenly over its split, as squares of `size` pixels.

    A folder of images alone has no splits. Only these are decoded. Raises BadInput for a reference without images,
    NoSplit for one without that split.
    """
    if is_unlabelled(ref):
        paths = images_in(Path(os.path.expanduser(ref))).images
        reader = ImageReader(None, lambda: ((path, str(path)) for path in paths))
        return _of(lambda place: prepared(reader.read(paths[place], str(paths[place])), size), len(paths), count)
    samples: Any = open_split(ref, split, task=find_task(ref), size=size)
    if not len(samples):
        raise BadInput(f"data {ref!r}: its {split} split holds no image")
    return _of(lambda place: _square(samples, place, size), len(samples), count)


def _of(image: Callable[[int], Tensor], held: int, count: int) -> Pictures:
    places = torch.linspace(0, held - 1, min(count, held)).round().long().tolist()
    return Pictures(torch.stack([image(place) for place in places]))


def _square(samples: Any, place: int, size: int) -> Tensor:
    image: Tensor = samples[place].image
    judge_shape(image.shape[1], image.shape[2], size, f"image {place}")
    return prepared(image, size)
