"""The part of `infer.py` for runs that see pictures reduced (`side`)."""

import numpy as np

from leanconv.deploy.script.resize import resized
from leanconv.deploy.script.tiles import tiled


def reduced(picture, facts, run):  # logits O H W of a picture whose longer side is reduced for the network
    height, width = picture.shape[:2]
    share = min(1.0, facts["side"] / max(height, width))
    small = resized(picture, max(1, round(height * share)), max(1, round(width * share)))
    return enlarged(enlarged(tiled(small, facts, run), 2, width), 1, height)


def enlarged(maps, axis, size):  # bilinear along an axis, pixels' middles at half numbers
    n = maps.shape[axis]
    place = (np.arange(size) + 0.5) * np.float64(np.float32(n / size)) - 0.5  # then rounded once, as PyTorch does
    place = np.maximum(place.astype(np.float32), 0)
    low = place.astype(np.int64)
    part = (place - low).reshape([-1 if each == axis else 1 for each in range(maps.ndim)])
    return maps.take(low, axis) * (1 - part) + maps.take(np.minimum(low + 1, n - 1), axis) * part
