"""From a uint8 image and its mask to a training sample: random crops, flips, rotations and light, or none.

Networks see float32 images, (value / 255 - 0.5) / 0.25 in every channel: no statistics of a data set to carry along.
All dice are thrown by torch's default generator, so that its state is the whole state of the augmentation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.train.data.masks import IGNORE
from leanconv.train.data.padding import mirror

MEAN, STD = 0.5, 0.25


def to_float(images: Tensor) -> Tensor:
    """uint8 images `... 3 H W` as float32 inputs of the networks here."""
    return (images.float() / 255 - MEAN) / STD


def to_uint8(images: Tensor) -> Tensor:
    """The inverse of `to_float`, rounded and clipped."""
    return ((images.float() * STD + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class TrainTransform:
    """`(image uint8 3 H W, mask uint8 H W) -> (float32 3 S S, int64 S S)`, at random; IGNORE stays IGNORE.

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

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = self._crop(image, mask)
        if self.flips:
            image, mask = _turned(image, mask)
        if self.light:
            image = _relit(image, self.light)
        return to_float(image), mask.long()

    def _crop(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.scale
        zoom = low * (high / low) ** torch.rand(()).item()  # a zoom of 2 is as likely as one of 1/2
        window = max(1, round(self.size / zoom))
        on_defect = torch.rand(()).item() < self.defect_crop
        pixels = ((mask > 0) & (mask != IGNORE)).nonzero() if on_defect else mask.new_empty((0, 2))
        anchor = pixels[_below(len(pixels))].tolist() if len(pixels) else [None, None]
        rows, columns = (_place(size, window, at) for size, at in zip(mask.shape, anchor, strict=True))
        image, mask = image[:, rows][:, :, columns], mask[rows][:, columns]
        return (image, mask) if window == self.size else _resized(image, mask, self.size)


@dataclass(frozen=True)
class PlainTransform:
    """The same without randomness: the whole image, resized to `size` x `size` if a size is given."""

    size: int | None = None

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.size is not None and tuple(mask.shape) != (self.size, self.size):
            image, mask = _resized(image, mask, self.size)
        return to_float(image), mask.long()


def _place(size: int, window: int, around: int | None) -> Tensor:
    """Indices of a random window in an axis of `size`, containing the place `around` if that is given."""
    low, high = min(0, size - window), max(0, size - window)
    if around is not None:
        low, high = max(low, around - window + 1), min(high, around)
    start = low + _below(high - low + 1)
    return mirror(start, start + window, size)


def _below(stop: int) -> int:
    return int(torch.randint(stop, ()).item())


def _turned(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One of a square's eight symmetries, or of a rectangle's four that keep the shape."""
    F = _v2().functional
    if _below(2):
        image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
    turns = _below(4) if image.shape[1] == image.shape[2] else 2 * _below(2)
    return torch.rot90(image, turns, (1, 2)), torch.rot90(mask, turns, (0, 1))


def _relit(image: Tensor, strength: float) -> Tensor:
    transform = _v2().ColorJitter(brightness=strength, contrast=strength, saturation=strength)
    changed: Tensor = transform(image)
    return changed


def _resized(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize the image by anti-aliased bilinear interpolation, the mask by its nearest pixel."""
    v2 = _v2()
    from torchvision.tv_tensors import Image, Mask

    pair = (
        v2.functional.resize(Image(image), [size, size], antialias=True),
        v2.functional.resize(Mask(mask), [size, size]),
    )
    return pair[0].as_subclass(Tensor), pair[1].as_subclass(Tensor)


def _v2() -> Any:
    with needs("torchvision", "train"):
        from torchvision.transforms import v2
    return v2
