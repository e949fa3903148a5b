"""Downscaling of images before the network: a 128-pixel crop then covers a larger piece of the part.

The option `side` of a data reference limits the longer side, in training, evaluation, reports and exports. `predict`
takes it from the run and returns masks at the photograph's own size.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from leanconv.extras import needs
from leanconv.train.data.pairs import PairSource


def reduced_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size of an image whose longer side is at most `side` pixels; smaller images stay as they are."""
    share = min(1.0, side / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def reduce_image(image: Tensor, side: int) -> Tensor:
    """Reduce a uint8 `3 H W` by an antialiased bilinear filter. Raises MissingExtra without torchvision."""
    with needs("torchvision", "train"):
        from torchvision.transforms.v2 import functional
    size = reduced_size(image.shape[-2], image.shape[-1], side)
    return image if tuple(image.shape[-2:]) == size else functional.resize(image, list(size), antialias=True)


def reduce_mask(mask: Tensor, side: int) -> Tensor:
    """Reduce class indices `H W` by the nearest pixel."""
    size = reduced_size(mask.shape[0], mask.shape[1], side)
    if tuple(mask.shape) == size:
        return mask
    return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].to(mask.dtype)


def enlarge_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Enlarge a reduced image's logits to the image's own size, bilinear: `O h w -> O H W`."""
    if tuple(logits.shape[-2:]) == (height, width):
        return logits
    return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]


class ReducedSource:
    """Another source's samples, their longer side at most `side` pixels."""

    def __init__(self, source: PairSource, side: int) -> None:
        self.source, self.side = source, side
        self.names: Sequence[str] = source.names

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width after the reduction."""
        return reduced_size(*self.source.sizes(index), self.side)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The reduced image and mask."""
        image, mask = self.source.read(index)
        return reduce_image(image, self.side), reduce_mask(mask, self.side)
