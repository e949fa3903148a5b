"""Logits for an image of any size in bounded memory: overlapping tiles with blended seams."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput, LeanconvError
from leanconv.running import evaluating
from leanconv.train.data.augment import to_float
from leanconv.train.data.padding import mirror

TILE, OVERLAP = 512, 64
# Logits of one image in memory: 4 GiB.
MOST_LOGITS = 1 << 30


class TooLarge(BadInput):
    """An image whose logits do not fit in memory."""


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn Python's and PyTorch's out-of-memory errors into TooLarge."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("out of memory", "can't allocate memory", "not enough memory")
        if isinstance(error, LeanconvError) or not (
            isinstance(error, MemoryError) or any(each in str(error) for each in words)
        ):
            raise
        raise TooLarge("there is not enough memory for it; cut it into parts, or say side=") from error


def check_logits(outputs: int, height: int, width: int) -> None:
    """Raise TooLarge if an image's logits do not fit in memory."""
    if outputs * height * width > MOST_LOGITS:
        size = outputs * height * width / 2**28
        raise TooLarge(f"{outputs} outputs for {width}x{height} pixels are {size:.0f} GiB of logits; cut it into parts")


def predict_logits(
    model: nn.Module, image: Tensor, *, tile: int = TILE, overlap: int = OVERLAP, batch: int = 1
) -> Tensor:
    """Logits float32 `O H W`, on the CPU, of an image of any size.

    The image is cut into tiles of `tile` x `tile` that share at least `overlap` pixels. `batch` of them run at a time.
    In the middle half of an overlap one tile fades into the next. Its outer quarters do not count, as a tile's own
    border affects them. So a network that looks no further than `overlap / 4` pixels gives exactly what it gives on the
    whole image. SPConv, SPLConv and squeeze-and-excitation average over all they see. A tile's answer then differs from
    the whole image's by nature. Tiles of the training's crop size are then as good as large ones.

    Args:
        image: uint8 `3 H W`, or float `C H W` that is normalised already.
        tile, overlap: in pixels; the tile grows to the multiple that the model needs (`size_multiple`, else 32). An
            image that fits one tile is run whole. Borders are mirrored up to that multiple.
    Raises: BadInput for impossible sizes, or a model that does not return `N O H W` for `N C H W`.
    """
    with evaluating(model):
        return logits_alike(model, [image], tile=tile, overlap=overlap, batch=batch)[0]


@torch.no_grad()
def logits_alike(
    model: nn.Module, images: Sequence[Tensor], *, tile: int = TILE, overlap: int = OVERLAP, batch: int = 1
) -> list[Tensor]:
    """`predict_logits` of several images of one size: `batch` tiles at a time, of all images together.

    The model is in eval mode already.
    """
    shape = images[0].shape
    if len(shape) != 3 or 0 in shape:
        raise BadInput(f"predict takes one image C H W with at least one pixel, got {tuple(shape)}")
    unit = int(getattr(model, "size_multiple", 32))
    rows, columns = (_Axis.of(size, tile, overlap, unit) for size in shape[1:])
    places = [
        (k, i, j) for k in range(len(images)) for i in range(len(rows.starts)) for j in range(len(columns.starts))
    ]
    if batch < 1:
        raise BadInput(f"batch={batch}: at least 1")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total: list[Tensor] = []
    for at in range(0, len(places), batch):
        group = places[at : at + batch]
        chosen = [(images[k], rows.pixels[i], columns.pixels[j]) for k, i, j in group]
        parts = torch.stack([image.index_select(1, down).index_select(2, right) for image, down, right in chosen])
        parts = parts.to(device)
        logits = model(to_float(parts) if parts.dtype == torch.uint8 else parts)
        if not isinstance(logits, Tensor) or logits.dim() != 4 or logits.shape[-2:] != parts.shape[-2:]:
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BadInput(f"the model gives {shown} for {tuple(parts.shape)}; predict needs logits of the same H W")
        if not total:
            check_logits(logits.shape[1], *shape[1:])
            total = [torch.zeros(logits.shape[1], *shape[1:]) for _ in images]
        for (k, i, j), part in zip(group, logits.float().cpu(), strict=True):
            if len(places) == len(images):  # nothing to blend; a copy, for an engine may write into its answer again
                total[k] = part[:, : shape[1], : shape[2]].clone()
                continue
            y, x, wy, wx = rows.starts[i], columns.starts[j], rows.weights[i], columns.weights[j]
            part = part[:, : len(wy), : len(wx)]  # cut off the mirrored pixels
            total[k][:, y : y + len(wy), x : x + len(wx)] += part * wy[:, None] * wx
    return total


@dataclass(frozen=True)
class _Axis:
    """The tiles along one axis: where each starts, the pixels it takes, its weights on the pixels that exist.

    The weights of all tiles add up to 1 at every pixel.
    """

    starts: list[int]
    pixels: list[Tensor]
    weights: list[Tensor]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(size: int, tile: int, overlap: int, unit: int) -> "_Axis":
        if tile < 1 or overlap < 0:
            raise BadInput(f"tile={tile}, overlap={overlap}: a tile of at least 1 pixel, an overlap of at least 0")
        padded, tile = (-(-value // unit) * unit for value in (size, tile))
        tile = min(tile, padded)
        starts = [0]
        if padded > tile:
            step = (tile - overlap) // unit * unit
            if step < unit:
                raise BadInput(f"overlap={overlap} leaves nothing of tile={tile}: at most {tile - unit}")
            count = -(-(padded - tile) // step) + 1
            # Even spacing in whole units, so that every tile sees the pooling grid of the whole image.
            starts = [(padded - tile) // unit * i // (count - 1) * unit for i in range(count)]
        raw = [_fade(starts, i, tile) for i in range(len(starts))]
        sums = torch.zeros(padded)
        for start, weight in zip(starts, raw, strict=True):
            sums[start : start + tile] += weight
        weights = [weight / sums[start : start + tile] for start, weight in zip(starts, raw, strict=True)]
        return _Axis(
            starts,
            [mirror(start, start + tile, size) for start in starts],
            [weight[: max(0, size - start)] for start, weight in zip(starts, weights, strict=True)],
        )


def _fade(starts: list[int], index: int, tile: int) -> Tensor:
    """A tile's weights along an axis: 1 inside, falling to 0 within the middle half of each overlap, beyond it 0."""
    place = torch.arange(tile) + 0.5
    weight = torch.ones(tile)
    if index > 0:
        shared = starts[index - 1] + tile - starts[index]
        weight = weight * _ramp(place, shared)
    if index + 1 < len(starts):
        shared = starts[index] + tile - starts[index + 1]
        weight = weight * _ramp(tile - place, shared)
    return weight


def _ramp(place: Tensor, shared: int) -> Tensor:
    return ((place - shared / 4) / max(shared / 2, 1e-6)).clamp(0, 1)


def layout(height: int, width: int, unit: int, *, tile: int = TILE, overlap: int = OVERLAP) -> tuple[int, int, int]:
    """Height and width of the tiles that `predict_logits` cuts an image into, and their number.

    `unit`: the multiple that the model needs.
    """
    rows, columns = (_Axis.of(size, tile, overlap, unit) for size in (height, width))
    return len(rows.pixels[0]), len(columns.pixels[0]), len(rows.starts) * len(columns.starts)
