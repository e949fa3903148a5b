"""Augmentation for classification: a shifted or zoomed crop, a flip half of the time, colour jitter.

Small sets in memory are augmented a batch at a time; photographs one by one, as they are decoded. Networks see float32
images as `augment.to_float` makes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.extras import needs
from leanconv.train.data.augment import to_float
from leanconv.train.data.batches import Order, mix
from leanconv.train.data.labelled import Labelled, prepared

# Area share and aspect ratio of a random crop, as usual on ImageNet.
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Crops:
    """The augmentation of a training image.

    Attributes:
        size: side S of the square.
        augment: false gives the network the image as in evaluation.
        flips: mirror left and right, half of the time.
        light: strength of the changes of brightness, contrast and saturation; 0 leaves the colours alone.
    """

    size: int
    augment: bool = True
    flips: bool = True
    light: float = 0.0

    @property
    def pad(self) -> int:
        """The largest shift of a small image in pixels, with black padding: 4 at 32, as usual on CIFAR."""
        return max(1, self.size // 8)

    def batch(self, images: Tensor, seed: int, rank: int = 0, processes: int = 1) -> Tensor:
        """uint8 `n 3 S S` -> float32 `n 3 S S`: a process's share of a batch, with random numbers from `seed`."""
        if not self.augment:
            return to_float(images)
        dice, whole = torch.Generator().manual_seed(seed), len(images) * processes
        shift = torch.randint(2 * self.pad + 1, (2, whole), generator=dice)[:, rank::processes]
        flip = torch.rand(whole, generator=dice)[rank::processes] < 0.5
        factors = 1 + self.light * (2 * torch.rand(3, whole, generator=dice) - 1)[:, rank::processes]
        windows = F.pad(images, [self.pad] * 4).unfold(2, self.size, 1).unfold(3, self.size, 1)  # n 3 y x S S
        cut = windows[torch.arange(len(images)), :, shift[0], shift[1]]
        if self.flips:
            cut = torch.where(flip[:, None, None, None], cut.flip(3), cut)
        return to_float(relit(cut, *factors) if self.light else cut)

    def __call__(self, image: Tensor, label: int) -> tuple[Tensor, int]:
        """One photograph uint8 `3 H W` -> float32 `3 S S`, with torch's default generator; the label passes."""
        if not self.augment:
            return to_float(prepared(image, self.size)), label
        with needs("torchvision", "train"):
            from torchvision.transforms import v2
        image = v2.RandomResizedCrop(self.size, scale=AREA, ratio=RATIO, antialias=True)(image)
        if self.flips:
            image = v2.RandomHorizontalFlip()(image)
        if self.light:
            image = v2.ColorJitter(brightness=self.light, contrast=self.light, saturation=self.light)(image)
        return to_float(image), label


def relit(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Jitter uint8 `n 3 H W` by one factor per image (`n`) and kind, in the order of v2.ColorJitter."""
    pixels, weights = images.float(), torch.tensor(_GREY).view(1, 3, 1, 1)
    pixels = (pixels * brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    mean = (pixels * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * contrast.view(-1, 1, 1, 1)).clamp(0, 255)
    grey = (pixels * weights).sum(1, keepdim=True)
    pixels = (grey + (pixels - grey) * saturation.view(-1, 1, 1, 1)).clamp(0, 255)
    return pixels.round().to(torch.uint8)


def memory_batches(
    samples: Labelled, crops: Crops, order: Order, start: int, stop: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (float32 images `n 3 S S`, labels `n`) of the steps start ... stop - 1, from a set in memory."""
    assert samples.images is not None
    for step in range(start, stop):
        places = torch.tensor(order.images(step))
        images = crops.batch(samples.images[places], mix(order.seed, step), order.rank, order.processes)
        yield images, samples.labels[places]
