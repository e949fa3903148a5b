"""Pictures of image, truth and each model's hits, misses and false alarms: worst, typical and best images alike."""

import base64
import io
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.extras import needs
from leanconv.report.found import count_defects, names_of
from leanconv.train.data.masks import IGNORE
from leanconv.train.tasks.decision import Rule

Pixels = NDArray[np.uint8]

# IBM's colour-blind-safe colours, and brown. Any two lie at least 40 apart (CIELAB) for each kind of colour blindness.
FOUND, MISSED, FALSE, OTHER = 1, 2, 3, 4
COLOURS = {FOUND: (100, 143, 255), MISSED: (220, 38, 127), FALSE: (255, 176, 0), OTHER: (120, 60, 0)}
WORDS = {FOUND: "found", MISSED: "missed", FALSE: "false alarm", OTHER: "found, but as another class"}
NOT_JUDGED = (128, 128, 128)
# Colours of the true classes, repeated after seven: none is a colour of `COLOURS`. A dark edge shows white on white.
CLASS_COLOURS = (
    (255, 255, 255), (0, 0, 180), (90, 240, 150), (90, 0, 120), (180, 150, 210), (150, 0, 60), (150, 120, 0),
)  # fmt: skip
EDGE, EDGE_COLOUR = 254, (0, 0, 0)
_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))
# The groups of pictures, in their order on the page.
GROUPS = ("worst", "typical", "best")


@dataclass(frozen=True)
class Tile:
    """One picture of a case: caption, alternative text, transparent mask (a data URI) over the photo, and a count."""

    caption: str
    alt: str
    mask: str
    dice: float = math.nan
    run: int = -1
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One image of the split: the photo as a data URI, its tiles, and why it is shown (one of `GROUPS`)."""

    name: str
    group: str
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


def choose(
    images: Sequence[Mapping[str, float]], limit: int, defective: Collection[str] | None = None
) -> list[tuple[str, str]]:
    """Choose at most `limit` images as (name, group): as many of the worst, of the typical and of the best ones.

    Typical ones lie around the median of the mean Dice. With fewer than three pictures there are the worst only, then
    also the best.

    Args:
        images: for each model, image name -> Dice. Only images with a score of every model count.
        defective: names of the images that have a defect. The best ones are chosen among them, as an empty image in
            which nothing is marked shows nothing. None: all.
    """
    scored = [scores for scores in images if scores]
    if not scored or limit < 1:
        return []
    common = [name for name in scored[0] if all(name in scores for scores in scored)]
    mean = {name: statistics.fmean(scores[name] for scores in scored) for name in common}
    order = sorted(common, key=lambda name: (mean[name], name))
    limit = min(limit, len(order))
    best_n, typical_n = limit // 3 + (limit % 3 == 2), limit // 3
    told = [name for name in order if defective is None or name in defective] or order
    best = told[max(0, len(told) - best_n) :][::-1]
    left = [name for name in order if name not in best]
    worst = left[: limit - typical_n - len(best)]
    left = left[len(worst) :]
    start = max(0, (len(left) - typical_n) // 2)
    typical = left[start : start + typical_n]
    return [(name, group) for group, names in zip(GROUPS, (worst, typical, best), strict=True) for name in names]


def case(
    name: str,
    group: str,
    image: Pixels,
    truth: Pixels,
    guesses: Sequence[tuple[int, str, Pixels, float, Rule]],
    classes: Sequence[str],
    *,
    side: int = 288,
) -> Case:
    """Draw the pictures of one image.

    Args:
        image: `3 H W`.
        truth: `H W` class indices, 0 = background.
        guesses: for each model, index of the run, its name, `H W` class indices, Dice, its rule of defects.
        side: longest side of the embedded pictures in pixels. Smaller images keep their size.
    """
    h, w = truth.shape
    scale = min(1.0, side / max(h, w))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    defect = (truth > 0) & (truth != IGNORE)
    share = float(defect.mean())
    names = names_of(classes, truth)
    palette = {k: CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)] for k in range(1, max(2, len(classes)))}
    palette |= {IGNORE: NOT_JUDGED, EDGE: EDGE_COLOUR}
    total = count_defects(truth, truth).total
    tiles = [
        Tile("Image", f"Photo {name}", ""),
        Tile(
            "Truth",
            f"Truth of {name}: {names}, {share:.1%} of the image",
            _mask(truth, palette, size, edge=True),
            note=f"{total} defect{'s' * (total != 1)}",
        ),
    ]
    for index, run, guess, dice, rule in guesses:
        errors, counted = error_map(guess, truth), count_defects(guess, truth, rule)
        found = (errors == FOUND).sum() / max(1, defect.sum())
        alarm = float((errors == FALSE).mean())
        known = f"{found:.0%} of the defect pixels found" if share else "there is no defect to find"
        alt = f"{run} on {name}: Dice {dice:.2f}; {counted}; {known}, {alarm:.1%} of the image falsely marked"
        tiles.append(Tile(run, alt, _mask(errors, COLOURS, size), dice, index, str(counted)))
    return Case(name, group, _photo(image, size), *size, tuple(tiles))


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
    """Return the legend as (words, CSS colour): truth, one entry for each of several classes, then hits and errors."""
    truth = ["truth"] if len(classes) <= 2 else [f"truth: {name}" for name in classes[1:]]
    legend = [(words, _css(CLASS_COLOURS[i % len(CLASS_COLOURS)])) for i, words in enumerate(truth)]
    codes = (FOUND, MISSED, FALSE, *((OTHER,) if len(classes) > 2 else ()))
    return legend + [(WORDS[code], _css(COLOURS[code])) for code in codes]


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _photo(image: Pixels, size: tuple[int, int]) -> str:
    pil = _pil()
    picture = pil.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(size, pil.Resampling.LANCZOS)
    return _uri(picture, "webp", quality=82)


def _mask(
    codes: Pixels, colours: Mapping[int, tuple[int, int, int]], size: tuple[int, int], *, edge: bool = False
) -> str:
    """Encode a palette PNG that is transparent at 0. It has about 1 kB. `edge`: a dark line around what is marked."""
    pil = _pil()
    picture = pil.fromarray(codes.astype(np.uint8)).resize(size, pil.Resampling.NEAREST)
    if edge:
        picture = pil.fromarray(_edged(np.asarray(picture)))
    table = [0] * 768
    for code, colour in colours.items():
        table[3 * code : 3 * code + 3] = colour
    picture = picture.convert("L")
    picture.putpalette(table)
    return _uri(picture, "png", optimize=True, transparency=0)


def _edged(codes: Pixels) -> Pixels:
    """Put the code EDGE on the background pixels that touch a mark."""
    framed = np.pad(codes, 1)
    around = np.max([framed[1 + dy :, 1 + dx :][: len(codes), : codes.shape[1]] for dy, dx in _AROUND], axis=0)
    return np.where((codes == 0) & (around > 0), EDGE, codes).astype(np.uint8)


def _uri(picture: Any, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _pil() -> Any:
    with needs("pillow", "report"):
        from PIL import Image
    return Image
