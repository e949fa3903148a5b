"""Random changes of brightness, contrast and saturation: of each image in its own order, or of a whole batch in one."""

import torch
from torch import Tensor

from leanconv.train.data.dice import Dice

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_GREY = (0.299, 0.587, 0.114)


def jitter_(pixels: Tensor, strength: float, dice: Dice) -> None:
    """Change an image in place, with the numbers that torchvision's v2.ColorJitter gives for uint8 images.

    Args:
        pixels: float32 `3 H W` with whole numbers from 0 to 255; they stay whole.
        strength: each factor is between 1 - strength and 1 + strength.
        dice: gives the order of the three changes, then their factors.
    """
    order = dice.order(4)
    factors = [dice.between(1 - strength, 1 + strength) for _ in range(3)]
    for kind in order:
        if kind == _HUE:  # it stays
            continue
        factor = factors[kind]
        if kind == _BRIGHTNESS:
            pixels.mul_(factor)
        else:
            grey = pixels[0].mul(0.2989).add_(pixels[1], alpha=0.587).add_(pixels[2], alpha=0.114).floor_()
            pixels.mul_(factor).add_(grey.mean() if kind == _CONTRAST else grey, alpha=1 - factor)
        pixels.clamp_(0, 255).floor_()


def relit(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Jitter uint8 `n 3 H W` by one factor per image (`n`) and kind, in the order of v2.ColorJitter."""
    pixels, weights = images.float(), torch.tensor(_GREY).view(1, 3, 1, 1)
    pixels = (pixels * brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    mean = (pixels * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * contrast.view(-1, 1, 1, 1)).clamp(0, 255)
    grey = (pixels * weights).sum(1, keepdim=True)
    pixels = (grey + (pixels - grey) * saturation.view(-1, 1, 1, 1)).clamp(0, 255)
    return pixels.round().to(torch.uint8)
