"""The part of `infer.py` that runs a picture of any size in overlapping tiles, as `leanconv predict` lays them."""

import numpy as np


def axis(size, unit, tile, overlap):  # of the tiles along an axis: starts, pixels (mirrored at the end), weights
    padded = -(-size // unit) * unit
    tile = min(-(-tile // unit) * unit, padded)
    count = 1 if padded == tile else -(-(padded - tile) // ((tile - overlap) // unit * unit)) + 1
    starts = [(padded - tile) // unit * i // max(count - 1, 1) * unit for i in range(count)]
    at, weights, total = np.arange(tile, dtype=np.float32) + np.float32(0.5), [], np.zeros(padded, np.float32)
    for i, start in enumerate(starts):
        weight = np.ones(tile, np.float32)
        for place, other in ((at, i - 1), (tile - at, i + 1)):  # a fade in the middle half of each overlap
            if 0 <= other < count:
                shared = tile - abs(starts[other] - start)
                weight = weight * ((place - shared / 4) / max(shared / 2, 1e-6)).clip(0, 1)
        weights.append(weight)
        total[start : start + tile] += weight
    mirrored = np.arange(padded) % (period := max(2 * size - 2, 1))
    mirrored = np.minimum(mirrored, period - mirrored)
    return [(s, mirrored[s : s + tile], (w / total[s : s + tile])[: size - s]) for s, w in zip(starts, weights)]


def tiled(picture, facts, run):  # uint8 H W 3 -> logits float32 O H W
    sizes = facts["multiple"], facts["tile"], facts["overlap"]
    logits = None
    for y, rows, down in axis(picture.shape[0], *sizes):
        for x, columns, right in axis(picture.shape[1], *sizes):
            part = run(np.ascontiguousarray(picture[rows][:, columns])[None], "logits")[0, :, : len(down), : len(right)]
            logits = np.zeros((len(part), *picture.shape[:2]), np.float32) if logits is None else logits
            logits[:, y : y + len(down), x : x + len(right)] += part * down[:, None] * right
    return logits
