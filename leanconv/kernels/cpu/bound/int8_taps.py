"""Depthwise taps as products of four bytes: four rows under each other, or four columns side by side."""

import torch
from torch import Tensor

# Products: row and column of their four taps, and weights `pair C 4`.
Products = list[tuple[list[tuple[int, int]], Tensor]]


def choose_products(taps: Tensor, pair: int) -> tuple[Products, bool]:
    """The cheaper products of taps `C R S`, for `pair` rows of the result at once; whether columns are side by side.

    Four bytes are interleaved once for both rows, which takes about twice the operations of a product.
    """
    _, r, s = taps.shape
    rows, columns = _by_rows(taps, pair), _by_columns(taps, pair)
    fewer = len(rows) / s * 2 / pair + len(rows) <= r * 2 / pair + len(columns)
    return (rows, False) if fewer else (columns, True)


def _by_rows(taps: Tensor, pair: int) -> Products:
    """Of four rows under each other."""
    c, r, s = taps.shape
    made: Products = []
    for first in range(0, r + pair - 1, 4):
        for column in range(s):
            weights = torch.zeros(pair, c, 4, dtype=torch.int8)
            places = []
            for slot in range(4):
                there = first + slot < r + pair - 1
                places.append((first + slot if there else first, column))
                for out in range(pair):
                    if there and 0 <= first + slot - out < r:
                        weights[out, :, slot] = taps[:, first + slot - out, column]
            made.append((places, weights))
    return made


def _by_columns(taps: Tensor, pair: int) -> Products:
    """Of four columns side by side; a row of taps for each of the `pair` rows that are computed."""
    c, r, s = taps.shape
    made: Products = []
    for row in range(r + pair - 1):
        for first in range(0, s, 4):
            weights = torch.zeros(pair, c, 4, dtype=torch.int8)
            for out in range(pair):
                if 0 <= row - out < r:
                    for slot in range(min(4, s - first)):
                        weights[out, :, slot] = taps[:, row - out, first + slot]
            made.append(([(row, first + slot) for slot in range(4)], weights))  # some beyond, of no weight
    return made
