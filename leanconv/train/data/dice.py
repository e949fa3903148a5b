"""The random numbers of one image's augmentation: they depend on its seed alone, in whatever thread they are drawn.

The draws are those of torch's default generator after `manual_seed(seed)`, in the order of torchvision's transforms:
the batches are those of versions that augmented one image at a time with torchvision.
"""

import math

import torch

# Area share and aspect ratio of a random crop, as usual on ImageNet.
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_LOG_RATIO = [float(torch.tensor(ratio).log()) for ratio in RATIO]  # rounded as torchvision rounds them
_TRIES = 10


class Dice:
    """A generator of its own: torch's default one belongs to the network, whose dropout another thread may draw."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def share(self) -> float:
        """A number from 0 to below 1."""
        return torch.rand((), generator=self._generator).item()

    def between(self, low: float, high: float) -> float:
        """A number from `low` to below `high`."""
        return torch.empty(1).uniform_(low, high, generator=self._generator).item()

    def below(self, stop: int) -> int:
        """A whole number from 0 to `stop` - 1."""
        return int(torch.randint(stop, (), generator=self._generator).item())

    def order(self, count: int) -> list[int]:
        """The numbers from 0 to `count` - 1 in random order."""
        order: list[int] = torch.randperm(count, generator=self._generator).tolist()
        return order

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop of random area and aspect ratio: torchvision's RandomResizedCrop."""
        for _ in range(_TRIES):
            area = height * width * self.between(*AREA)
            aspect = torch.empty(1).uniform_(*_LOG_RATIO, generator=self._generator).exp().item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return self.below(height - h + 1), self.below(width - w + 1), h, w
        w, h = width, height  # the middle, as much of it as has an allowed aspect ratio
        if width / height < RATIO[0]:
            h = round(width / RATIO[0])
        elif width / height > RATIO[1]:
            w = round(height * RATIO[1])
        return (height - h) // 2, (width - w) // 2, h, w
