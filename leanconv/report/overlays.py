"""Pictures of image, truth and each model's hits, misses and false alarms; worst images first."""

import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.extras import needs
from leanconv.train.data.masks import IGNORE

Pixels = NDArray[np.uint8]

# IBM's colour-blind-safe colours: each pair stays distinct under the common colour vision deficiencies.
FOUND, MISSED, FALSE, OTHER = 1, 2, 3, 4
COLOURS = {FOUND: (100, 143, 255), MISSED: (220, 38, 127), FALSE: (255, 176, 0), OTHER: (120, 94, 240)}
WORDS = {FOUND: "found", MISSED: "missed", FALSE: "false alarm", OTHER: "found, but as another class"}
NOT_JUDGED = (128, 128, 128)
# Colours of the true classes (Okabe and Ito), repeated after seven.
CLASS_COLOURS = (
    (100, 143, 255), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (86, 180, 233),
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """One picture of a case: a caption, an alternative text, and the transparent mask (a data URI) over the photo."""

    caption: str
    alt: str
    mask: str
    dice: float = math.nan
    run: int = -1


@dataclass(frozen=True)
class Case:
    """One image of the split: the photo as a data URI, its tiles, and why it is shown."""

    name: str
    why: str
    photo: str
    width: int
    height: int
    tiles: tuple[Tile, ...]

    @property
    def dices(self) -> list[float]:
        """The Dice of each model, in the order of the tiles."""
        return [tile.dice for tile in self.tiles if tile.run >= 0]

    @property
    def mean_dice(self) -> float:
        return statistics.fmean(self.dices) if self.dices else math.nan

    @property
    def spread(self) -> float:
        """Best minus worst Dice, the disagreement of the models."""
        return max(self.dices) - min(self.dices) if self.dices else 0.0


def choose(images: Sequence[Mapping[str, float]], limit: int) -> list[tuple[str, str]]:
    """Choose at most `limit` images as (name, reason): lowest mean Dice first, then a typical and the best one.

    Args:
        images: for each model, image name -> Dice. Only images with a score of every model count.
    """
    scored = [scores for scores in images if scores]
    if not scored or limit < 1:
        return []
    common = [name for name in scored[0] if all(name in scores for scores in scored)]
    mean = {name: statistics.fmean(scores[name] for scores in scored) for name in common}
    order = sorted(common, key=lambda name: (mean[name], name))
    worst = order[: limit if len(order) <= limit or limit < 4 else limit - 2]
    chosen = [(name, f"worst {rank}" if rank > 1 else "the worst") for rank, name in enumerate(worst, 1)]
    if len(worst) < len(order) and limit >= 4:
        middle = order[len(worst) + (len(order) - 1 - len(worst)) // 2]
        chosen.append((middle, "a typical one"))
        if order[-1] != middle:
            chosen.append((order[-1], "the best"))
    return chosen


def case(
    name: str,
    why: str,
    image: Pixels,
    truth: Pixels,
    guesses: Sequence[tuple[int, str, Pixels, float]],
    classes: Sequence[str],
    *,
    side: int = 288,
) -> Case:
    """Draw the pictures of one image.

    Args:
        image: `3 H W`.
        truth: `H W` class indices, 0 = background.
        guesses: for each model, index of the run, its name, `H W` class indices, Dice.
        side: longest side of the embedded pictures in pixels. Smaller images keep their size.
    """
    h, w = truth.shape
    scale = min(1.0, side / max(h, w))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    defect = (truth > 0) & (truth != IGNORE)
    share = float(defect.mean())
    names = ", ".join(_name(classes, int(k)) for k in np.unique(truth[defect])) or "no defect"
    palette = {k: CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)] for k in range(1, max(2, len(classes)))}
    palette[IGNORE] = NOT_JUDGED
    tiles = [
        Tile("Image", f"Photo {name}", ""),
        Tile("Truth", f"Truth of {name}: {names}, {share:.1%} of the image", _mask(truth, palette, size)),
    ]
    for index, run, guess, dice in guesses:
        errors = error_map(guess, truth)
        found = (errors == FOUND).sum() / max(1, defect.sum())
        alarm = float((errors == FALSE).mean())
        known = f"{found:.0%} of the defect found" if share else "there is no defect to find"
        alt = f"{run} on {name}: Dice {dice:.2f}; {known}, {alarm:.1%} of the image falsely marked"
        tiles.append(Tile(run, alt, _mask(errors, COLOURS, size), dice, index))
    return Case(name, why, _photo(image, size), *size, tuple(tiles))


def error_map(guess: Pixels, truth: Pixels) -> Pixels:
    """Return an `H W` map of FOUND, MISSED, FALSE, OTHER. It is 0 for background in both, or if not judged."""
    errors = np.zeros(truth.shape, np.uint8)
    errors[(truth > 0) & (guess == truth)] = FOUND
    errors[(truth > 0) & (guess == 0)] = MISSED
    errors[(truth == 0) & (guess > 0)] = FALSE
    errors[(truth > 0) & (guess > 0) & (guess != truth)] = OTHER
    errors[truth == IGNORE] = 0
    return errors


def css_colours(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the legend as (words, CSS colour). Several classes get one entry each for the truth."""
    legend = [(WORDS[code], _css(COLOURS[code])) for code in (FOUND, MISSED, FALSE)]
    if len(classes) > 2:
        legend.append((WORDS[OTHER], _css(COLOURS[OTHER])))
        legend += [
            (f"truth: {name}", _css(CLASS_COLOURS[i % len(CLASS_COLOURS)])) for i, name in enumerate(classes[1:])
        ]
    return legend


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _name(classes: Sequence[str], k: int) -> str:
    return classes[k] if k < len(classes) else f"class {k}"


def _photo(image: Pixels, size: tuple[int, int]) -> str:
    pil = _pil()
    picture = pil.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(size, pil.Resampling.LANCZOS)
    return _uri(picture, "webp", quality=82)


def _mask(codes: Pixels, colours: Mapping[int, tuple[int, int, int]], size: tuple[int, int]) -> str:
    """Encode a palette PNG that is transparent at 0. It has about 1 kB and is exact."""
    pil = _pil()
    picture = pil.fromarray(codes.astype(np.uint8)).resize(size, pil.Resampling.NEAREST)
    table = [0] * 768
    for code, colour in colours.items():
        table[3 * code : 3 * code + 3] = colour
    picture = picture.convert("L")
    picture.putpalette(table)
    return _uri(picture, "png", optimize=True, transparency=0)


def _uri(picture: Any, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _pil() -> Any:
    with needs("pillow", "report"):
        from PIL import Image
    return Image
