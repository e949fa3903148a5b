"""The part of `infer.py` that resizes pictures: PyTorch's antialiased bilinear filter, in the same whole numbers."""

import numpy as np


def resized(picture, height, width):  # uint8 H W 3
    for axis, size in ((1, width), (0, height)):
        if (n := picture.shape[axis]) != size:
            scale, reach = n / size, max(n / size, 1.0)
            weights = np.zeros((size, n))
            for i in range(size):
                middle = scale * (i + 0.5)
                low, high = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), n)
                weights[i, low:high] = np.maximum(0, 1 - np.abs((np.arange(low, high) - middle + 0.5) / reach))
            weights /= weights.sum(1, keepdims=True)
            bits = next(b for b in range(23) if b == 22 or int(0.5 + weights.max() * 2 ** (b + 1)) >= 2**15)
            weights = np.floor(weights * 2**bits + 0.5).astype(np.float32)  # sums stay below 2^24: exact
            sums = np.tensordot(weights, np.moveaxis(picture, axis, 0).astype(np.float32), 1)
            picture = np.moveaxis(((sums.astype(np.int64) + 2 ** (bits - 1)) >> bits).clip(0, 255), 0, axis)
    return picture.astype(np.uint8)
