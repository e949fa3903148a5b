"""Images without labels, as a network takes them: what `apply_(init="fit")` is calibrated on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.augment import to_float
from leanconv.train.data.labelled import judge_shape, prepared
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

    Only these are decoded. Raises BadInput for a reference without images, NoSplit for one without that split.
    """
    samples: Any = open_split(ref, split, task=find_task(ref), size=size)
    if not len(samples):
        raise BadInput(f"data {ref!r}: its {split} split holds no image")
    places = torch.linspace(0, len(samples) - 1, min(count, len(samples))).round().long().tolist()
    return Pictures(torch.stack([_square(samples, place, size) for place in places]))


def _square(samples: Any, place: int, size: int) -> Tensor:
    image: Tensor = samples[place].image
    judge_shape(image.shape[1], image.shape[2], size, f"image {place}")
    return prepared(image, size)
