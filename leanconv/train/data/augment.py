"""From a uint8 image and its mask to a training sample: random crops, flips, rotations and light, or none.

Networks see float32 images, (value / 255 - 0.5) / 0.25 in every channel: no statistics of a data set to carry along.
A batch is written once, image by image, while each is in the cache: crops, flips and quarter turns are views of the
decoded image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.train.data.dice import Dice
from leanconv.train.data.light import jitter_
from leanconv.train.data.masks import IGNORE
from leanconv.train.data.padding import mirror

MEAN, STD = 0.5, 0.25


def to_float(images: Tensor) -> Tensor:
    """uint8 images `... 3 H W` as float32 inputs of the networks here."""
    return (images.float() / 255 - MEAN) / STD


def to_uint8(images: Tensor) -> Tensor:
    """The inverse of `to_float`, rounded and clipped."""
    return ((images.float() * STD + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)


class Augmentation(Protocol):
    """From decoded samples to a batch that a network takes."""

    def batch(self, samples: Sequence[Any], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images float32 `N 3 S S`, and their masks int64 `N S S` or labels int64 `N`; a seed for each sample."""


@dataclass(frozen=True)
class TrainTransform:
    """Square crops of images uint8 `3 H W` and of their masks uint8 `H W`, at random; IGNORE stays IGNORE.

    Attributes:
        size: side S of the crop; smaller images are mirrored outwards.
        scale: smallest and largest zoom; 1.25 shows things a quarter larger. (1, 1) does not zoom.
        defect_crop: share of crops around a random defect pixel, if there is one: for tiny defects.
        flips: mirror images and quarter turns, all eight equally often.
        light: strength of the changes of brightness, contrast and saturation; 0 leaves the colours alone.
    """

    size: int
    scale: tuple[float, float] = (1.0, 1.0)
    defect_crop: float = 0.0
    flips: bool = True
    light: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInput(f"augment: size={self.size}: at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise BadInput(f"augment: scale={self.scale}: the smallest and the largest zoom, above 0")
        if not 0 <= self.defect_crop <= 1 or not 0 <= self.light < 1:
            raise BadInput(f"augment: defect_crop={self.defect_crop}, light={self.light}: from 0 to 1")

    def batch(self, samples: Sequence[Any], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Augmentation`."""
        images = torch.empty(len(samples), 3, self.size, self.size)
        masks = torch.empty(len(samples), self.size, self.size, dtype=torch.int64)
        for place, (sample, seed) in enumerate(zip(samples, seeds, strict=True)):
            dice = Dice(seed)
            image, mask = self._crop(sample[0], sample[1], dice)
            if self.flips:
                image, mask = _turned(image, mask, dice)
            masks[place] = mask
            write_(images[place], image, self.light, dice)
        return images, masks

    def _crop(self, image: Tensor, mask: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
        low, high = self.scale
        zoom = low * (high / low) ** dice.share()  # a zoom of 2 is as likely as one of 1/2
        window = max(1, round(self.size / zoom))
        on_defect = dice.share() < self.defect_crop
        pixels = ((mask > 0) & (mask != IGNORE)).nonzero() if on_defect else mask.new_empty((0, 2))
        anchor = pixels[dice.below(len(pixels))].tolist() if len(pixels) else [None, None]
        for axis, around in enumerate(anchor):
            image, mask = _cut(image, mask, axis, _start(mask.shape[axis], window, around, dice), window)
        return (image, mask) if window == self.size else _resized(image, mask, self.size)


@dataclass(frozen=True)
class PlainTransform:
    """The same without randomness: the whole image, resized to `size` x `size`."""

    size: int

    def batch(self, samples: Sequence[Any], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Augmentation`."""
        pairs = [_resized(image, mask, self.size) for image, mask, *_ in samples]
        return to_float(torch.stack([image for image, _ in pairs])), torch.stack([mask for _, mask in pairs]).long()


def write_(out: Tensor, image: Tensor, light: float, dice: Dice) -> None:
    """Write an image uint8 `3 S S` into a network's input float32 `3 S S`, its light changed at random."""
    out.copy_(image)
    if light:
        jitter_(out, light, dice)
    out.div_(255).sub_(MEAN).div_(STD)


def _start(size: int, window: int, around: int | None, dice: Dice) -> int:
    """Where a random window in an axis of `size` begins; it holds the place `around` if that is given."""
    low, high = min(0, size - window), max(0, size - window)
    if around is not None:
        low, high = max(low, around - window + 1), min(high, around)
    return low + dice.below(high - low + 1)


def _cut(image: Tensor, mask: Tensor, axis: int, start: int, window: int) -> tuple[Tensor, Tensor]:
    """The window's rows (axis 0) or columns (1) of `3 H W` and `H W`, mirrored where it reaches beyond the image."""
    size = mask.shape[axis]
    if start >= 0 and start + window <= size:
        return image.narrow(axis + 1, start, window), mask.narrow(axis, start, window)
    places = mirror(start, start + window, size)
    return image.index_select(axis + 1, places), mask.index_select(axis, places)


def _turned(image: Tensor, mask: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """One of a square's eight symmetries."""
    if dice.below(2):
        image, mask = image.flip(2), mask.flip(1)
    turns = dice.below(4)
    return torch.rot90(image, turns, (1, 2)), torch.rot90(mask, turns, (0, 1))


def _resized(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize the image by anti-aliased bilinear interpolation, the mask by its nearest pixel, unless they fit."""
    if tuple(mask.shape) == (size, size):
        return image, mask
    with needs("torchvision", "train"):
        from torchvision.transforms.v2 import InterpolationMode, functional
    pixels = functional.resize(image, [size, size], antialias=True)
    return pixels, functional.resize(mask[None], [size, size], InterpolationMode.NEAREST)[0]
