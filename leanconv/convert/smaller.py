"""The same call on smaller images: algebra that holds on 64×64 holds on 512×512, and costs 64 times less there."""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert.adjacency import path_of
from leanconv.errors import BadInput
from leanconv.running import Inputs, map_tensors, tensors

# Images are cut to this side, plus the rest of their own by UNIT: a network that halves five times pads as before.
SIDE, UNIT = 64, 32
SAMPLES = 2  # of a batch: one alone may take a path of its own


def smaller(model: nn.Module, inputs: Inputs, path: list[Any]) -> Inputs | None:
    """The middle of the images in `inputs`, if the model takes the same path there; None where it does not.

    Args:
        path: the operators that the model ran on `inputs`, one after another (`adjacency.Watch.path`).
    """
    images = [t for t in tensors(inputs) if t.dim() == 4]
    sides = {t.shape[2:] for t in images}
    if len(sides) != 1:  # of several sizes nothing says how they belong together
        return None
    batch = images[0].shape[0]

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == batch > SAMPLES:
            tensor = tensor[:SAMPLES]
        return _middle(tensor) if tensor.dim() == 4 else tensor

    made = map_tensors(cut, inputs)
    if all(a.shape == b.shape for a, b in zip(tensors(made), tensors(inputs), strict=True)):
        return None
    try:
        return made if path_of(model, made) == path else None
    except BadInput:  # a head of fixed size, or a position of its own for every pixel
        return None


def _middle(image: Tensor) -> Tensor:
    """The middle rows and columns, in the memory format of the image."""
    for axis in (2, 3):
        length = image.shape[axis]
        kept = min(length, SIDE + length % UNIT)
        image = image.narrow(axis, (length - kept) // 2, kept)
    return image.clone(memory_format=torch.preserve_format)
