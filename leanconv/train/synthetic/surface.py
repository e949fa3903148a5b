"""The drawn surface of a die: streets, blocks of lines, pads, repeated cells, rings and buses, in a microscope's tints.

Everything is axis-aligned here, on a canvas of `FINE` pixels per image pixel; the camera turns and samples it later.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from leanconv.extras import needs

with needs("pillow", "train"):
    from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]

FINE = 2
NARROWEST = 4  # canvas pixels between two lines: a bridge over less than two image pixels is not seen

# Street, substrate, metal, second metal, pad, as in bright-field microscopy.
_TINTS = (
    (0.26, ((104, 54, 26), (186, 118, 50), (228, 170, 72), (150, 84, 40), (246, 228, 190))),  # gold
    (0.16, ((122, 70, 58), (206, 138, 110), (236, 180, 138), (172, 100, 78), (250, 236, 214))),  # copper
    (0.14, ((152, 92, 40), (216, 168, 66), (250, 216, 112), (184, 128, 50), (255, 246, 204))),  # yellow
    (0.12, ((38, 58, 48), (86, 102, 80), (134, 142, 106), (60, 84, 66), (190, 200, 182))),  # olive
    (0.12, ((62, 46, 62), (144, 118, 152), (196, 170, 200), (108, 84, 120), (240, 226, 232))),  # violet
    (0.10, ((60, 66, 80), (108, 122, 142), (152, 166, 182), (84, 96, 116), (206, 216, 226))),  # steel
    (0.05, ((18, 24, 34), (36, 52, 62), (110, 132, 122), (64, 84, 90), (180, 214, 226))),  # dark field
    (0.05, ((84, 128, 92), (112, 156, 112), (136, 178, 130), (98, 142, 102), (170, 200, 150))),  # oxide
)


@dataclass
class Surface:
    """A canvas under construction.

    Attributes:
        image: the picture, RGB.
        flaws: what is wrong with the pattern itself, 0 or 255 (bridges, missing pattern).
        tint: street, substrate, metal, second metal, pad.
        gaps: spaces between two neighbouring lines, and the colour of the lines, for bridges.
    """

    image: Image.Image
    flaws: Image.Image
    tint: list[Colour]
    gaps: list[tuple[Box, Colour]] = field(default_factory=list)


def surface(rng: Generator, side: int, *, wired: bool = False) -> Surface:
    """A fresh canvas of `side` x `side`, often one die pattern several times over; `wired`: with lines to bridge."""
    tint = _tint(rng)
    zoom = FINE * float(np.exp(rng.uniform(np.log(0.6), np.log(2.2))))
    period = side
    if rng.random() < 0.45:
        period = min(side, int(zoom * rng.integers(60, 180)))
    die = _Die(rng, period, zoom, tint, wired)
    if period == side:
        return Surface(die.image, Image.new("L", (side, side)), tint, die.gaps)
    whole, gaps = Image.new("RGB", (side, side), tint[0]), []
    for y in range(0, side, period):
        for x in range(0, side, period):
            whole.paste(die.image, (x, y))
            gaps += [((x + a, y + b, x + c, y + d), colour) for (a, b, c, d), colour in die.gaps]
    return Surface(whole, Image.new("L", (side, side)), tint, gaps)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter or darker."""
    r, g, b = (max(0, min(255, round(value * factor))) for value in colour)
    return r, g, b


def _tint(rng: Generator) -> list[Colour]:
    weights = np.array([weight for weight, _ in _TINTS])
    colours = np.array(_TINTS[rng.choice(len(_TINTS), p=weights / weights.sum())][1], np.float64)
    colours = colours * rng.uniform(0.82, 1.15) * rng.uniform(0.92, 1.08, 3) + rng.normal(0, 7, colours.shape)
    return [(int(r), int(g), int(b)) for r, g, b in colours.clip(4, 255)]


class _Die:
    """One die pattern: the canvas is divided again and again, and each part is filled with one kind of structure."""

    def __init__(self, rng: Generator, side: int, zoom: float, tint: list[Colour], wired: bool) -> None:
        self.rng, self.zoom, self.tint = rng, zoom, tint
        self.image = Image.new("RGB", (side, side), tint[0])
        self.draw = ImageDraw.Draw(self.image)
        self.gaps: list[tuple[Box, Colour]] = []
        self.street = self.px(1, 9)
        self.ground = tint[1]
        self.largest = self.px(36, 110)
        # A die uses few kinds of structure, and uses them again.
        kinds = [self.lines, self.lines, self.pads, self.cells, self.cells, self.plain, self.rings, self.bus]
        self.kinds = [kinds[i] for i in rng.integers(0, len(kinds), int(rng.integers(2, 6)))]
        self.wired = wired
        if wired:
            self.kinds = [*self.kinds[:2], self.lines, self.lines]
        self.tiles = [self._tile() for _ in range(2)]
        self.divide((0, 0, side, side), 0)

    def px(self, low: float, high: float) -> int:
        """A random length of `low` to `high` image pixels at this zoom, on the canvas; small ones are likelier."""
        return max(1, round(self.zoom * float(np.exp(self.rng.uniform(np.log(low), np.log(high))))))

    def divide(self, box: Box, depth: int) -> None:
        x0, y0, x1, y1 = box
        w, h = x1 - x0, y1 - y0
        if depth > 9 or max(w, h) < self.largest * self.rng.uniform(0.8, 2.0) or min(w, h) < 8:
            self.fill(box)
            return
        street = self.street if depth < 3 else max(1, self.street // 3)
        share = self.rng.uniform(0.25, 0.75)
        if w > h:
            cut = x0 + int(w * share)
            parts = (x0, y0, cut - street, y1), (cut, y0, x1, y1)
        else:
            cut = y0 + int(h * share)
            parts = (x0, y0, x1, cut - street), (x0, cut, x1, y1)
        for part in parts:
            self.divide(part, depth + 1)

    def fill(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        self.ground = self.tint[self.rng.choice([1, 1, 1, 3])]
        self.rectangle(box, self.ground)
        self.kinds[self.rng.integers(len(self.kinds))](box)
        if self.rng.random() < 0.25:
            self.draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=self.tint[0], width=max(1, self.street // 4))

    def rectangle(self, box: tuple[float, ...], colour: Colour) -> None:
        x0, y0, x1, y1 = box
        if x1 - 1 >= x0 and y1 - 1 >= y0:
            self.draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)

    def plain(self, box: Box) -> None:
        self.rectangle(box, self.tint[self.rng.choice([1, 2, 2, 3])])

    def lines(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        width, gap = self.px(1, 6), self.px(1, 6)
        colour = self.tint[self.rng.choice([2, 2, 3, 0])]
        if self.wired:
            gap, width = max(gap, NARROWEST), max(width, NARROWEST // 2)
        clear = sum(abs(a - b) for a, b in zip(colour, self.ground)) > 75
        upright = self.rng.random() < 0.5
        start, stop = (x0, x1) if upright else (y0, y1)
        for at in range(start + gap, stop - width, width + gap):
            self.rectangle((at, y0, at + width, y1) if upright else (x0, at, x1, at + width), colour)
            if clear and gap >= NARROWEST and at + 2 * width + gap < stop:
                space = (at + width, y0, at + width + gap, y1) if upright else (x0, at + width, x1, at + width + gap)
                self.gaps.append((space, colour))

    def pads(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        size = max(3, min(self.px(6, 26), (x1 - x0) * 3 // 4, (y1 - y0) * 3 // 4))
        pitch = size + max(2, int(size * self.rng.uniform(0.15, 0.9)))
        rim, shape = max(1, size // 9), self.rng.integers(4)
        for y in range(y0 + (pitch - size) // 2, y1 - size, pitch):
            for x in range(x0 + (pitch - size) // 2, x1 - size, pitch):
                outer = (x, y, x + size - 1, y + size - 1)
                if shape == 0:
                    self.draw.ellipse(outer, fill=self.tint[4], outline=self.tint[0], width=rim)
                elif shape == 1:
                    self.draw.rounded_rectangle(outer, size // 4, fill=self.tint[4], outline=self.tint[3], width=rim)
                else:
                    self.draw.rectangle(outer, fill=self.tint[4], outline=self.tint[0 if shape == 2 else 3], width=rim)

    def cells(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        tile = self.tiles[self.rng.integers(len(self.tiles))]
        repeat = (-(-(y1 - y0) // tile.shape[0]), -(-(x1 - x0) // tile.shape[1]), 1)
        self.image.paste(Image.fromarray(np.tile(tile, repeat)[: y1 - y0, : x1 - x0]), (x0, y0))

    def rings(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        width, gap = self.px(1, 5), self.px(1, 5)
        colour, fill = self.tint[self.rng.choice([2, 3, 0])], self.tint[self.rng.choice([1, 2, 4])]
        inset = gap
        for _ in range(int(self.rng.integers(1, 6))):
            if min(x1 - x0, y1 - y0) <= 2 * (inset + width):
                return
            edge = (x0 + inset, y0 + inset, x1 - inset - 1, y1 - inset - 1)
            self.draw.rectangle(edge, outline=colour, width=width)
            inset += width + gap
        if min(x1 - x0, y1 - y0) > 2 * inset:
            self.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), fill)

    def bus(self, box: Box) -> None:
        """Parallel lines with a joint 45-degree step, like wiring around an obstacle."""
        x0, y0, x1, y1 = box
        width, gap = self.px(2, 6), self.px(1.5, 5)
        colour, step = self.tint[self.rng.choice([2, 2, 4])], int((y1 - y0) * self.rng.uniform(-0.4, 0.4))
        middle = x0 + int((x1 - x0) * self.rng.uniform(0.2, 0.6))
        part = Image.new("L", (x1 - x0, y1 - y0))
        pen = ImageDraw.Draw(part)
        for at in range(-abs(step), y1 - y0 + abs(step), width + gap):
            corners = [(0, at), (middle - x0, at), (middle - x0 + abs(step), at + step), (x1 - x0, at + step)]
            pen.line(corners, fill=255, width=width, joint="curve")
        self.image.paste(colour, (x0, y0), part)

    def _tile(self) -> np.ndarray:
        """One cell `h w 3` of a memory or logic array: a few rectangles."""
        h, w = self.px(4, 18), self.px(4, 18)
        cell = np.empty((h + 1, w + 1, 3), np.uint8)
        cell[:] = self.tint[1]
        for _ in range(int(self.rng.integers(2, 6))):
            y, x = self.rng.integers(0, h), self.rng.integers(0, w)
            dy, dx = self.rng.integers(1, h + 1), self.rng.integers(1, w + 1)
            cell[y : y + dy, x : x + dx] = self.tint[self.rng.choice([0, 2, 2, 3, 4])]
        return cell
