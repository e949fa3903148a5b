"""Pictures continued beyond their edge by mirroring, for sizes that a network needs."""

from typing import Any

import torch
from torch import Tensor


def mirror(start: int, stop: int, size: int, device: Any = None) -> Tensor:
    """Indices into an axis of `size` for the places start ... stop - 1, mirrored (edge not repeated) outside of it."""
    period = max(2 * (size - 1), 1)
    place = torch.arange(start, stop, device=device) % period
    return torch.minimum(place, period - place) if size > 1 else place


def pad_to(images: Tensor, multiple: int) -> Tensor:
    """`N C H W` mirrored outwards at the right and below, to multiples."""
    h, w = images.shape[-2:]
    if h % multiple == w % multiple == 0:
        return images
    rows = mirror(0, -(-h // multiple) * multiple, h, images.device)
    columns = mirror(0, -(-w // multiple) * multiple, w, images.device)
    return images[..., rows, :][..., columns]
