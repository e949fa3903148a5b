"""The defects of the synthetic wafer, each drawn together with its exact mask.

Defects of the pattern itself (a bridge, missing pattern) are drawn on the surface's canvas before the camera turns it;
those that lie upon it (scratch, particle, stain) are laid over the picture: `image` float32 `H W 3` of 0 ... 1 and
`mask` bool `H W` are changed in place.
"""

import math

import numpy as np
from numpy.random import Generator

from leanconv.extras import needs
from leanconv.train.synthetic.surface import Surface, shade

with needs("pillow", "train"):
    from PIL import Image, ImageDraw

Array = np.ndarray


def bridge(rng: Generator, drawn: Surface, region: float) -> bool:
    """A bridge of metal between neighbouring lines; False if the surface has no lines inside `region`.

    `region`: half the side, in canvas pixels around its centre, of the square that the camera surely sees.
    """
    middle = drawn.image.width / 2
    near = [gap for gap in drawn.gaps if max(abs((gap[0][i] + gap[0][i + 2]) / 2 - middle) for i in (0, 1)) < region]
    if not near:
        return False
    (x0, y0, x1, y1), colour = near[rng.integers(len(near))]
    upright = y1 - y0 > x1 - x0
    across, along = (x1 - x0, y1 - y0) if upright else (y1 - y0, x1 - x0)
    length = max(2.0, min(along, max(across, 6) * rng.uniform(1.0, 3.5)))
    first, last = (y0, y1) if upright else (x0, x1)
    low, high = max(first, middle - region), min(last, middle + region)
    start = rng.uniform(low, max(low, high - length))
    # Waisted like molten metal: wide at both lines, narrower half way.
    t = np.linspace(0, 1, 9)
    waist = length / 2 * (1 - rng.uniform(0, 0.5) * np.sin(math.pi * t)) * rng.uniform(0.85, 1.15, 9)
    a = np.concatenate([t, t[::-1]]) * (across + 3) - 1.5  # well into both lines
    b = start + length / 2 + np.concatenate([waist, -waist[::-1]])
    corners = list(zip(x0 + a, b)) if upright else list(zip(b, y0 + a))
    ImageDraw.Draw(drawn.image).polygon(corners, fill=shade(colour, rng.uniform(0.85, 1.15)))
    ImageDraw.Draw(drawn.flaws).polygon(corners, fill=255)
    return True


def block_etch(rng: Generator, drawn: Surface, region: float) -> None:
    """Missing pattern: an irregular patch of bare substrate or unetched metal with a dark rim."""
    middle = drawn.image.width / 2
    radius = region * float(np.exp(rng.uniform(np.log(0.07), np.log(0.45))))
    x, y = middle + rng.uniform(-0.85, 0.85, 2) * region
    outline = _blob(rng, radius, rng.uniform(0.05, 0.25)) * [1, rng.uniform(0.5, 1.0)] @ _turn(rng) + [x, y]
    corners = [tuple(corner) for corner in outline.tolist()]
    colour = shade(drawn.tint[rng.choice([1, 2, 4])], rng.uniform(0.8, 1.2))
    rim = shade(drawn.tint[0], rng.uniform(0.4, 0.9))
    pen = ImageDraw.Draw(drawn.image)
    pen.polygon(corners, fill=colour)
    pen.line([*corners, corners[0]], fill=rim, width=int(rng.integers(2, 6)), joint="curve")
    if rng.random() < 0.4:  # what is left of the resist
        inner = outline * 0.6 + 0.4 * outline.mean(0) + rng.normal(0, radius * 0.06, 2)
        pen.polygon([tuple(corner) for corner in inner.tolist()], fill=shade(colour, rng.uniform(0.75, 1.2)))
    ImageDraw.Draw(drawn.flaws).polygon(corners, fill=255, outline=255, width=2)


def particle(rng: Generator, image: Array, mask: Array) -> None:
    """One to many opaque grains, with shadow, halo and the rings of the resist around them."""
    size = len(mask)
    crowd = rng.random() < 0.25
    count = int(rng.integers(8, 30)) if crowd else int(rng.integers(1, 4))
    centre, spread = rng.uniform(0.1, 0.9, 2) * size, size * rng.uniform(0.05, 0.2)
    dark = rng.random() < 0.85
    for _ in range(count):
        span = (0.006, 0.02) if crowd else (0.012, 0.11)
        radius = max(1.2, size * float(np.exp(rng.uniform(*np.log(span)))))
        at = centre + rng.normal(0, spread, 2) if crowd else rng.uniform(0.05, 0.95, 2) * size
        _grain(rng, image, mask, at, radius, dark)


def _grain(rng: Generator, image: Array, mask: Array, at: Array, radius: float, dark: bool) -> None:
    (rows, columns), dy, dx = _patch(len(mask), at, radius * 2.6 + 4)
    if not dy.size or not dx.size:
        return
    u, v = _turned(rng, dy, dx)
    v = v * rng.uniform(1.0, 1.7)
    angle = np.arctan2(v, u)
    edge = np.full_like(u, radius)
    for k, strength in zip(range(2, 6), rng.uniform(0, 0.16, 4)):
        edge += radius * strength * np.cos(k * angle + rng.uniform(0, 2 * math.pi), dtype=np.float32)
    outside = np.hypot(u, v) - edge  # < 0 within the grain
    core = _step(-outside / 0.7)[..., None]
    picture = image[rows, columns]
    ringed = radius > 4 and rng.random() < 0.4
    wave = np.exp(-np.maximum(outside, 0) / (radius * rng.uniform(0.15, 0.5)))[..., None]
    if ringed:  # resist piled up around the grain: rings of interference colours
        phase = outside[..., None] / radius * rng.uniform(4, 9) * np.array([0.85, 1.0, 1.2], np.float32)
        picture *= 1 + 0.35 * wave * np.cos(phase)
    else:  # shadow and defocus
        picture *= 1 - rng.uniform(0.1, 0.5) * wave
    depth = np.clip(-outside / radius, 0, 1)[..., None]
    if dark:
        tone = rng.uniform(0.02, 0.16, 3) * [1.1, 1.0, 0.9]
        inside = tone + rng.uniform(0, 0.35) * (depth > rng.uniform(0.3, 0.7)) * rng.uniform(0.3, 1.0, 3)
    else:
        inside = rng.uniform(0.82, 1.0, 3) - 0.75 * (depth < 0.25)
    picture[...] = picture * (1 - core) + inside * core
    mask[rows, columns] |= core[..., 0] > 0.5
    if ringed:  # the first ring belongs to the defect, as every inspector marks it
        mask[rows, columns] |= outside < radius * 0.2


def scratch(rng: Generator, image: Array, mask: Array) -> None:
    """Curved strokes of varying width and depth, broken here and there; often several in parallel, with debris."""
    size, fine = len(mask), 2
    strokes = 1 if rng.random() < 0.55 else int(rng.integers(3, 12))
    length = size * rng.uniform(0.25, 1.3) * (1.0 if strokes == 1 else 0.6)
    width = max(1.3, size * float(np.exp(rng.uniform(np.log(0.005), np.log(0.028)))))
    heading, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.9)
    centre = rng.uniform(0.2, 0.8, 2) * size
    layer = Image.new("L", (size * fine, size * fine))
    pen = ImageDraw.Draw(layer)
    for _ in range(strokes):
        offset = rng.normal(0, size * 0.05, 2) if strokes > 1 else np.zeros(2)
        part = rng.uniform(0.3, 1.0) if strokes > 1 else 1.0
        turn = heading + (rng.normal(0, 0.12) if strokes > 1 else 0)
        _stroke(rng, pen, (centre + offset) * fine, turn, bend, length * part * fine, width * fine)
    if strokes > 1:
        for x, y in (centre + rng.normal(0, size * 0.06, (int(rng.integers(0, 20)), 2))) * fine:
            r = width * fine * rng.uniform(0.3, 1.0)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    cover = np.asarray(layer.reduce(fine), np.float32)[..., None] / 255  # H W 1
    dark = rng.random() < 0.75
    tone = rng.uniform(0.03, 0.2, 3) if dark else rng.uniform(0.85, 1.0, 3)
    strength = rng.uniform(0.55, 0.95)
    if rng.random() < 0.5:  # the ridge beside the groove catches the light
        ridge = np.roll(cover, (1, 1) if size < 256 else (2, 2), (0, 1)) * (1 - cover)
        image += ridge * (0.25 if dark else -0.3)
    image += (cover * strength) * (tone.astype(np.float32) - image)
    mask |= cover[..., 0] > 0.5


def _stroke(
    rng: Generator, pen: ImageDraw.ImageDraw, at: Array, heading: float, bend: float, length: float, width: float
) -> None:
    pieces = 40
    t = np.linspace(-0.5, 0.5, pieces + 1)
    angle = heading + bend * t + np.cumsum(rng.normal(0, 0.03, pieces + 1))
    step = np.stack([np.cos(angle), np.sin(angle)], 1) * length / pieces
    path = at + np.cumsum(step, 0) - step.sum(0) / 2
    normal = np.stack([-np.sin(angle), np.cos(angle)], 1)
    wide = width / 2 * (0.55 + 0.45 * np.cos(math.pi * t)) * _walk(rng, pieces + 1, 0.5, 1.3)
    left, right = path + normal * wide[:, None], path - normal * wide[:, None]
    gone = _walk(rng, pieces, 0, 1) < rng.choice([0, 0.12, 0.3])
    for i in np.flatnonzero(~gone):
        corners = left[i], left[i + 1], right[i + 1], right[i]
        pen.polygon([tuple(corner) for corner in np.array(corners).tolist()], fill=255)


def stain(rng: Generator, image: Array, mask: Array) -> None:
    """A soft irregular patch or band: fringes of a thin film, a burn, a dried drop's rim, haze."""
    size = len(mask)
    thickness = smooth(rng, size, int(rng.integers(3, 8)))
    y, x = np.ogrid[:size, :size]
    cy, cx = rng.uniform(0.1, 0.9, 2) * size
    turn = rng.uniform(0, math.pi)
    u = ((x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)) / size
    v = ((y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)) / size
    radius = float(np.exp(rng.uniform(np.log(0.12), np.log(0.6))))
    if rng.random() < 0.3:  # a band across the picture
        distance = np.abs(v) / (radius * 0.5)
    else:
        distance = np.sqrt(u * u + (v * rng.uniform(1.0, 2.2)) ** 2) / radius
    inside = (1 - distance + thickness * rng.uniform(0.15, 0.6)).astype(np.float32)
    soft = float(rng.uniform(0.02, 0.15))
    part = _around(inside > -soft)
    inside, thickness, picture = inside[part], thickness[part], image[part]
    cover = _step(inside / soft)[..., None]
    kind = rng.choice(["film", "burn", "drop", "haze"], p=[0.3, 0.35, 0.2, 0.15])
    if kind == "film":
        phase = (inside + 0.6 * thickness)[..., None] * rng.uniform(3, 9) * np.array([0.8, 1.0, 1.25], np.float32)
        change = picture * (0.85 + float(rng.uniform(0.2, 0.38)) * np.cos(phase + float(rng.uniform(0, 6))))
    elif kind == "burn":
        grain = 1 + float(rng.uniform(0.05, 0.4)) * smooth(rng, size, max(2, int(size / rng.uniform(2, 6))))[part]
        tone = rng.uniform(0.3, 0.75) * rng.uniform(0.8, 1.15, 3).astype(np.float32)
        change = picture * grain.clip(0.3, 1.5)[..., None] * tone.astype(np.float32)
    elif kind == "drop":
        rim = np.exp(-np.abs(inside) / float(rng.uniform(0.04, 0.1)))[..., None]
        change = picture * float(rng.uniform(0.75, 0.95)) * (1 - 0.7 * rim)
    else:
        haze = (rng.uniform(0.35, 0.95) * rng.uniform(0.8, 1.1, 3)).astype(np.float32)
        change = picture + float(rng.uniform(0.3, 0.6)) * (haze - picture)
    picture += cover * (change - picture)
    mask[part] |= cover[..., 0] > 0.5


def smooth(rng: Generator, size: int, cells: int) -> Array:
    """A random field `size size` of about -1 ... 1 that varies over `size / cells` pixels, float32."""
    coarse = Image.fromarray(rng.standard_normal((cells + 1, cells + 1), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _walk(rng: Generator, count: int, low: float, high: float) -> Array:
    """A smooth random function of `count` places between `low` and `high`."""
    knots = rng.uniform(low, high, max(3, count // 4))
    return np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), knots)


def _around(where: Array) -> tuple[slice, slice]:
    """The rows and columns that hold all of a mask."""
    spans = []
    for axis in (1, 0):
        places = np.flatnonzero(where.any(axis))
        spans.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0))
    return spans[0], spans[1]


def _step(x: Array) -> Array:
    """0 below -1, 1 above 1, smooth between; 0.5 at 0."""
    t = np.clip(x * 0.5 + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _blob(rng: Generator, radius: float, rough: float) -> Array:
    """Corners `48 2` of an irregular outline around 0."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    reach = np.ones(48)
    for k in range(2, 9):
        reach += rough / math.sqrt(k) * rng.normal() * np.cos(k * angle + rng.uniform(0, 2 * math.pi))
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius * np.maximum(reach, 0.2)[:, None]


def _turn(rng: Generator) -> Array:
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _turned(rng: Generator, dy: Array, dx: Array) -> tuple[Array, Array]:
    angle = rng.uniform(0, 2 * math.pi)
    return dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)


def _patch(size: int, at: Array, reach: float) -> tuple[tuple[slice, slice], Array, Array]:
    """The part of the picture within `reach` of (y, x), and the distances from there: `h 1` and `1 w`."""
    (y0, y1), (x0, x1) = ((max(0, int(c - reach)), max(0, min(size, int(c + reach) + 1))) for c in at)
    dy, dx = np.arange(y0, y1, dtype=np.float32) - at[0], np.arange(x0, x1, dtype=np.float32) - at[1]
    return (slice(y0, y1), slice(x0, x1)), dy[:, None].astype(np.float32), dx[None].astype(np.float32)
