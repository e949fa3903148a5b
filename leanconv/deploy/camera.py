"""A network as a camera needs it: pictures as they come go in, probabilities of their own size come out.

`Camera` puts preprocessing and padding into the graph. `Contract` is what a file says of itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leanconv.deploy.axes import GIVEN_VALUES, Dynamic, Look, Sizes
from leanconv.deploy.export import FORMATS, Check, Extras, export_call
from leanconv.deploy.int8.export import Int8
from leanconv.deploy.result import Exported
from leanconv.deploy.script import script
from leanconv.probes import LIKE
from leanconv.version import __version__

SCRIPT = "infer.py"
# Sizes at which every file is compared: odd ones, one that most networks must pad, one pixel.
_SIZES = (Sizes(1, 201, 199), Sizes(2, 200, 200), Sizes(1, 37, 53), Sizes(1, 1, 1))


@dataclass(frozen=True)
class Contract:
    """All that a program needs to know about a file for cameras. It stands in the file's metadata, as JSON.

    Attributes:
        task: `segment` or `classify`.
        classes: names in the order of the class indices.
        threshold: probability from which a pixel is of a class, one for all or one for each but the background; None
            where the largest logit wins.
        mean, std: of the normalisation `(value / 255 - mean) / std`.
        multiple: the file mirrors borders to multiples of this size (segment).
        tile, overlap: in pixels, of larger pictures (segment).
        side: pictures are first reduced to this longer side; None: never (segment).
        size: side of the squares that the file takes (classify).
        bits: that 16-bit pictures use; None if the data had none.
        palette: colours of the classes in masks of more than two.
    """

    task: str
    classes: tuple[str, ...]
    threshold: float | tuple[float, ...] | None
    mean: float
    std: float
    multiple: int = 1
    tile: int = 512
    overlap: int = 64
    side: int | None = None
    size: int | None = None
    bits: int | None = None
    palette: tuple[tuple[int, int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        inside = f"(value / 255 - {self.mean:g}) / {self.std:g}"
        if self.task == "classify":
            size = f"squares of {self.size}: the short side becomes {self.size} * 8 / 7, then the middle is cut out"
            shape, index = "N K", "image"
        else:
            size = f"any; inside the file mirrored at right and bottom to multiples of {self.multiple}, then cropped"
            if self.side:
                size = f"the longer side at most {self.side}: reduce the picture, enlarge the logits; {size}"
            shape, index = "N O H W", "pixel"
        chosen = "the largest wins" if self.threshold is None else "the likeliest but the background from threshold on"
        return {
            "leanconv": __version__,
            "task": self.task,
            "classes": list(self.classes),
            "threshold": self.threshold,
            "image": "uint8 N H W 3, RGB, as the camera gives it",
            "size_rule": size,
            "preprocessing": f"inside the file: {inside}",
            "probability": f"float32 {shape}; class of a {index}: {chosen}",
            "logits": f"float32 {shape}, before sigmoid or softmax: tiles are blended in these",
            "mean": self.mean,
            "std": self.std,
            "multiple": self.multiple,
            "tile": self.tile,
            "overlap": self.overlap,
            "side": self.side,
            "size": self.size,
            "bits": self.bits,
            "palette": [list(colour) for colour in self.palette],
        }


class Camera(nn.Module):
    """uint8 `N H W 3` -> `{"probability", "logits"}`, each `N O H W` (a classifier's: `N K`).

    Padding, normalisation and cropping are those of `leanconv predict`, to the bit. No branch depends on a size, so an
    exported graph takes every one, also a single pixel.
    """

    def __init__(self, network: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.network, self.contract = network, contract
        # Buffers, so that the module in float64 computes in float64.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(contract.mean))
        self.register_buffer("std", torch.tensor(contract.std))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        h, w = image.shape[1:3]
        if self.contract.task == "segment":
            image = image[:, _mirrored(h, self.contract.multiple, image.device)]
            image = image[:, :, _mirrored(w, self.contract.multiple, image.device)]
        x = image.permute(0, 3, 1, 2).to(self.mean.dtype).contiguous()  # N H W 3 -> N 3 H W
        logits = self.network((x / 255 - self.mean) / self.std)
        if self.contract.task == "segment":
            logits = logits[..., :h, :w]
        several = logits.shape[1] > 1
        return {"probability": logits.softmax(1) if several else logits.sigmoid(), "logits": logits}


def _mirrored(size: int, multiple: int, device: torch.device) -> Tensor:
    """Indices of an axis, mirrored at its end to the next multiple, without repeating the edge."""
    place = torch.arange((size + multiple - 1) // multiple * multiple, device=device)
    period = (2 * torch.arange(size, device=device)[-1:]).clamp(min=1)  # size may be a symbol: in tensors only
    # OpenVINO 2026.0 has no rule for the remainder of tensors.
    place = place - torch.div(place, period, rounding_mode="floor") * period
    return torch.minimum(place, period - place)


class Frames(Dynamic):
    """Camera frames `N H W 3` at any size, as the call of an export."""

    place: ClassVar[tuple[int, int]] = (1, 2)
    any_size: ClassVar[bool] = True

    def __init__(self, image: Tensor, unit: int, dynamic: Sequence[str]) -> None:
        super().__init__((), {"image": image}, dynamic)
        self.unit = unit

    def plan(self, model: nn.Module) -> tuple[Sizes, list[Look]]:
        """Trace at the given size. Compare there, at odd sizes, and at sizes that need no padding."""
        if "height" not in self.dynamic:
            looks = [Sizes(batch, self.given.height, self.given.width) for batch in (1, 5)]
        else:
            looks = [*_SIZES, Sizes(1, self.unit, 3 * self.unit), Sizes(5, 2 * self.unit, self.unit)]
        looks = [look for look in dict.fromkeys(looks) if _runs(model, self, look)]
        return self.given, [(self.given, (GIVEN_VALUES,)), *((look, (LIKE,)) for look in looks)]


def _runs(model: nn.Module, call: Dynamic, sizes: Sizes) -> bool:
    """Whether the model itself takes this size: some networks fail on one pixel."""
    try:
        with torch.no_grad():
            args, kwargs = call.call(sizes)
            model(*args, **kwargs)
    except Exception:  # a model may raise anything at a size that it does not take
        return False
    return True


def export_camera(
    network: nn.Module, contract: Contract, path: str | Path, *, check: Check | None = None, int8: Int8 | None = None
) -> Exported:
    """Write a network with its preprocessing, and beside it `infer.py`, which runs it without leanconv.

    Args:
        network: `N 3 H W -> N O H W` (segment) or `N 3 S S -> N K` (classify) logits.
        check: as of `export`; it gets a `Camera`, and the file in the call signature of one.
        int8: quantises the file; its data are calls of a `Camera`, dicts of uint8 `image` `N H W 3`.
    Raises: as `export`.
    """
    path = Path(path)
    segment, unit = contract.task == "segment", contract.multiple
    # No inner map of the traced size has one pixel: torch.export would fix that.
    h, w = (2 * unit + 5, 3 * unit + 7) if segment else (contract.size or 1, contract.size or 1)
    frames = torch.randint(0, 256, (2, h, w, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    axes = ("batch", "height", "width") if segment else ("batch",)
    extras = Extras(json.dumps(contract.to_dict()))
    if path.suffix in FORMATS:  # else `export_call` says what is wrong with it
        resizes = not segment or contract.side is not None
        extras = Extras(extras.facts, {SCRIPT: script(path, task=contract.task, resizes=resizes)})
    return export_call(Camera(network, contract), Frames(frames, unit, axes), path, check, extras, int8=int8)
