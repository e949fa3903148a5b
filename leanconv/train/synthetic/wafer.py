"""synthetic:wafer: photographs of patterned dies with scratches, particles, stains, bridges and missing pattern, drawn
together with their exact masks. Made on the fly: every picture is a function of its seed, and nothing is downloaded.

A picture is drawn (`surface`), damaged (`flaws`), turned and sampled by a camera, and photographed with its faults:
uneven light, defocus, noise, JPEG. A mask is 1 where the defect covers at least half of a pixel.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from leanconv.extras import needs
from leanconv.train.synthetic.flaws import block_etch, bridge, particle, scratch, smooth, stain
from leanconv.train.synthetic.surface import FINE, Surface, surface

with needs("pillow", "train"):
    from PIL import Image, ImageFilter

CLASSES = ("background", "defect")
KINDS = ("scratch", "particle", "stain", "bridge", "block_etch")

_WEIGHTS = (0.2, 0.25, 0.3, 0.1, 0.15)
_CLEAN = 0.1  # share of pictures without a defect
_STREAMS = {"train": 0, "val": 1, "test": 2}


def wafer(seed: int | Sequence[int], size: int = 128) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One picture: image uint8 `H W 3`, mask uint8 `H W` (0 and 1), and the kinds of defects in it, `size` x `size`.

    The same seed and size give the same picture in every process.
    """
    rng = np.random.default_rng(seed)
    kinds = _kinds(rng)
    angle = math.radians(_angle(rng))
    reach = abs(math.cos(angle)) + abs(math.sin(angle))
    drawn = surface(rng, math.ceil(FINE * (size * reach + 4)), wired="bridge" in kinds)
    kinds = _damage_pattern(rng, drawn, kinds, size * FINE / 2 / reach)
    image = _sampled(drawn.image, angle, size)
    mask = np.zeros((size, size), bool)
    if drawn.flaws.getbbox():
        mask = _sampled(drawn.flaws, angle, size) > 0.5
    _roughen(rng, image)
    for kind, lay in (("stain", stain), ("scratch", scratch), ("particle", particle)):
        for _ in range(kinds.count(kind)):
            lay(rng, image, mask)
    return _photograph(rng, image), mask.astype(np.uint8), tuple(sorted(set(kinds), key=KINDS.index))


class SyntheticSource:
    """Pictures 0 ... count - 1 of a split; `val` and `test` have a fifth of `train`'s count, and their own seeds."""

    def __init__(self, split: str, *, size: int = 128, count: int = 400, seed: int = 0) -> None:
        self.size, self.seed, self.stream = size, seed, _STREAMS[split]
        self.names: Sequence[str] = [
            f"wafer-{split}-{i:05d}" for i in range(count if split == "train" else max(1, count // 5))
        ]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width."""
        return self.size, self.size

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 `3 H W` and mask uint8 `H W`."""
        image, mask, _ = wafer((self.seed, self.stream, index), self.size)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)


def _kinds(rng: Generator) -> list[str]:
    if rng.random() < _CLEAN:
        return []
    count = 1 + int(rng.random() < 0.45) + int(rng.random() < 0.15)
    return [KINDS[i] for i in rng.choice(len(KINDS), count, p=_WEIGHTS)]


def _angle(rng: Generator) -> float:
    """Degrees: most dies lie straight, some nearly, a few anyhow."""
    choice = rng.random()
    return 0.0 if choice < 0.45 else float(rng.normal(0, 4)) if choice < 0.85 else float(rng.uniform(-45, 45))


def _damage_pattern(rng: Generator, drawn: Surface, kinds: list[str], region: float) -> list[str]:
    """Draw the bridges and missing patterns; a bridge becomes a particle where there are no lines to join."""
    left = []
    for kind in kinds:
        if kind == "block_etch":
            block_etch(rng, drawn, region)
        elif kind == "bridge":
            built = [bridge(rng, drawn, region) for _ in range(int(rng.integers(1, 5)))]
            kind = "bridge" if any(built) else "particle"
        left.append(kind)
    return left


def _sampled(canvas: "Image.Image", angle: float, size: int) -> np.ndarray:
    """The middle of the canvas, turned, at one value per image pixel: float32 of 0 ... 1."""
    if not angle:
        start = (canvas.width - FINE * size) // 2
        stop = start + FINE * size
        return np.asarray(canvas.reduce(FINE, (start, start, stop, stop)), np.float32) / 255
    c, s = FINE * math.cos(angle), FINE * math.sin(angle)
    middle = canvas.width / 2
    affine = (c, -s, middle - (c - s) * size / 2, s, c, middle - (s + c) * size / 2)
    turned = canvas.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(turned, np.float32) / 255


def _roughen(rng: Generator, image: np.ndarray) -> None:
    """The grain of metal and substrate, which the light shows."""
    size = len(image)
    if rng.random() < 0.6:
        grain = smooth(rng, size, max(2, int(size / rng.uniform(1.2, 5))))
        image *= 1 + float(rng.uniform(0.01, 0.07)) * grain[..., None]


def _photograph(rng: Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, defocus, noise, 8 bits, and in most pictures JPEG."""
    size = len(image)
    y, x = np.linspace(-1, 1, size, dtype=np.float32)[:, None], np.linspace(-1, 1, size, dtype=np.float32)[None]
    a, b = rng.normal(0, 0.07, 2).astype(np.float32)
    vignette = np.float32(rng.uniform(0, 0.12))
    light = np.float32(rng.uniform(0.85, 1.15)) * (1 + a * x + b * y - vignette * (x * x + y * y))
    image *= 255 * light[..., None]
    picture = Image.fromarray(_eight_bits(image))
    if rng.random() < 0.8:
        picture = picture.filter(ImageFilter.BoxBlur(float(rng.uniform(0.1, 1.0))))
    # Luminance noise alone: what chroma noise a sensor has, JPEG's subsampling takes away.
    noise = np.float32(rng.uniform(1, 7)) * rng.standard_normal((size, size, 1), dtype=np.float32)
    final = _eight_bits(np.asarray(picture) + noise)
    if rng.random() < 0.7:
        file = io.BytesIO()
        Image.fromarray(final).save(file, "JPEG", quality=int(rng.integers(60, 96)))
        final = np.array(Image.open(file))
    return final


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Clip in place, and cut to whole numbers."""
    return np.clip(values, 0, 255, out=values).astype(np.uint8)
