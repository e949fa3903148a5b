"""Augmentation for classification: a shifted or zoomed crop, a flip half of the time, colour jitter.

Small sets in memory are augmented a batch at a time; photographs one by one, as they are decoded. Networks see float32
images as `augment.to_float` makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.extras import needs
from leanconv.train.data.augment import to_float, write_
from leanconv.train.data.batches import Order, mix
from leanconv.train.data.dice import Dice
from leanconv.train.data.labelled import Labelled, prepared
from leanconv.train.data.light import relit


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

    def squares(self, images: Tensor, seed: int, rank: int = 0, processes: int = 1) -> Tensor:
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

    def batch(self, samples: Sequence[Any], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Photographs uint8 `3 H W` with their labels -> float32 `n 3 S S` and labels `n`; a seed for each."""
        labels = torch.tensor([sample.label for sample in samples])
        if not self.augment:
            return to_float(torch.stack([prepared(sample.image, self.size) for sample in samples])), labels
        with needs("torchvision", "train"):
            from torchvision.transforms.v2 import functional
        images = torch.empty(len(samples), 3, self.size, self.size)
        for out, sample, seed in zip(images, samples, seeds, strict=True):
            dice = Dice(seed)
            window = dice.window(*sample.image.shape[1:])
            image = functional.resized_crop(sample.image, *window, [self.size, self.size], antialias=True)
            if self.flips and dice.share() < 0.5:
                image = image.flip(2)
            write_(out, image, self.light, dice)
        return images, labels


def memory_batch(samples: Labelled, crops: Crops, order: Order, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step (float32 images `n 3 S S`, labels `n`) from a set in memory."""
    assert samples.images is not None
    places = torch.tensor(order.images(step))
    images = crops.squares(samples.images[places], mix(order.seed, step), order.rank, order.processes)
    return images, samples.labels[places]
