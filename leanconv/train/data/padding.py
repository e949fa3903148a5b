"""Reflection padding of images, to sizes that a network needs."""

from typing import Any

import torch
from torch import Tensor


def mirror(start: int, stop: int, size: int, device: Any = None) -> Tensor:
    """Indices into an axis of `size` for start ... stop - 1, mirrored outside of it without repeating the edge."""
    period = max(2 * (size - 1), 1)
    place = torch.arange(start, stop, device=device) % period
    return torch.minimum(place, period - place) if size > 1 else place


def pad_to(images: Tensor, multiple: int) -> Tensor:
    """Pad `N C H W` by reflection at the right and bottom, to multiples."""
    h, w = images.shape[-2:]
    if h % multiple == w % multiple == 0:
        return images
    rows = mirror(0, -(-h // multiple) * multiple, h, images.device)
    columns = mirror(0, -(-w // multiple) * multiple, w, images.device)
    return images[..., rows, :][..., columns]
