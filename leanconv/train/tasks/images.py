"""Whole images through a segmentation network: logits and masks, in batches of one size."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.running import evaluating
from leanconv.train.data.augment import to_float
from leanconv.train.data.padding import pad_to

Total = Callable[[Tensor], Tensor]
Group = list[tuple[int, Any]]  # images of one size: index and sample

# The most pixels of a batch of whole images: 1 Mpx of a base-32 U-Net takes 1 GB.
BATCH_PIXELS = 1 << 20
# The most pixels of images that wait for others of their size: 256 MB with their masks.
HELD_PIXELS = 1 << 26


def image_logits(
    model: nn.Module, samples: Any, batch: int, rank: int, processes: int, on_images: Callable[[int], object] | None
) -> Iterator[tuple[Group, Tensor, Tensor]]:
    """Indices and samples, logits `n O H W` and masks `n H W` of this process's images, grouped by size."""
    if not len(samples):
        raise BadInput("there are no images to evaluate")
    waiting, held = dict[tuple[int, ...], Group](), 0
    with evaluating(model):
        for index in range(rank, len(samples), processes):
            size = tuple((sample := samples[index]).image.shape[-2:])
            waiting.setdefault(size, []).append((index, sample))
            held += size[0] * size[1]
            full = [size] if len(waiting[size]) >= max(1, min(batch, BATCH_PIXELS // (size[0] * size[1]))) else []
            for size in full or (list(waiting) if held > HELD_PIXELS else []):
                group = waiting.pop(size)
                held -= len(group) * size[0] * size[1]
                yield _run(model, group, len(samples.classes))
                if on_images:
                    on_images(index + 1)
        for group in waiting.values():
            yield _run(model, group, len(samples.classes))
        if on_images:
            on_images(len(samples))


def _run(model: nn.Module, group: Group, classes: int) -> tuple[Group, Tensor, Tensor]:
    device = next(model.parameters()).device
    images = to_float(torch.stack([sample.image for _, sample in group]).to(device))
    masks = torch.stack([sample.mask for _, sample in group]).to(device)
    h, w = images.shape[-2:]
    logits = model(pad_to(images, getattr(model, "size_multiple", 32)))[..., :h, :w]
    if logits.shape[1] != classes and (logits.shape[1], classes) != (1, 2):
        raise BadInput(f"the model gives {logits.shape[1]} classes, the data has {classes}")
    return group, logits, masks
