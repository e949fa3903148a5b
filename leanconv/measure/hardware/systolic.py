"""Cycles of one convolution or matrix product on an output-stationary systolic array of X rows by Y columns.

A product has P output places, F filters and a reduction of length T. It is cut into folds: r ≤ X places by c ≤ Y
filters. A fold takes T + r + c - 1 cycles (the operands enter skewed); folds run one after the other. A depthwise
convolution is one product per channel, with one of the Y columns busy. FuSeConv's array broadcasts a weight along a
row. It runs a depthwise 1×k or k×1 as one line of input per row: `_lines`. Memory and pooling take no time.
Source: Selvam, Ganesan, Kumar, DATE 2021, arXiv:2105.13434; the authors' `analyticalLatencyModel.py`. Ours: groups
between 1 and C as that many products, transposed convolutions as the product before their overlapping sum, attention.
"""

import re
from dataclasses import dataclass
from typing import Self

from leanconv.errors import BadInput
from leanconv.measure.counting.contraction import Contraction


@dataclass(frozen=True)
class Array:
    """An array of `rows` (output places) by `columns` (filters).

    Attributes:
        broadcast_rows: a weight reaches a whole row at once: one-dimensional depthwise convolutions map by lines.
        drain: a fold's results leave before the next fold starts: one more cycle per used row.
        skip_lines: the broadcasting array omits lines that a stride drops; the published model runs them.
    """

    rows: int
    columns: int
    broadcast_rows: bool = False
    drain: bool = False
    skip_lines: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise BadInput(
                f"an array of {self.rows}x{self.columns} computes nothing; write ROWSxCOLUMNS, such as 64x64"
            )

    @classmethod
    def parse(cls, text: str, **options: bool) -> Self:
        """From `"64x64"`. Raises BadInput for anything else, and for a side of 0."""
        sides = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
        if sides is None:
            raise BadInput(f"array {text!r}: write ROWSxCOLUMNS, such as 64x64")
        return cls(int(sides[1]), int(sides[2]), **options)

    def __str__(self) -> str:
        extras = [name.replace("_", " ") for name in ("broadcast_rows", "drain", "skip_lines") if getattr(self, name)]
        return (
            f"{self.rows}x{self.columns} systolic array, output-stationary{', ' if extras else ''}{', '.join(extras)}"
        )


def product_cycles(array: Array, places: int, reduction: int, filters: int) -> int:
    """Cycles of one product of `places` by `reduction` by `filters`."""
    full_rows, rest_rows = divmod(places, array.rows)
    full_columns, rest_columns = divmod(filters, array.columns)

    def folds(count: int, r: int, c: int) -> int:
        return count * (reduction + r + c - 1 + (r if array.drain else 0)) if r and c else 0

    return (
        folds(full_rows * full_columns, array.rows, array.columns)
        + folds(full_columns, rest_rows, array.columns)
        + folds(full_rows, array.rows, rest_columns)
        + folds(1, rest_rows, rest_columns)
    )


def cycles(array: Array, sizes: Contraction) -> tuple[int, str]:
    """Cycles of one convolution or matrix product, and its mapping in words."""
    if array.broadcast_rows and (axis := line_axis(sizes)) is not None:
        return _lines(array, sizes, axis), "lines, one a row"
    each, filters = sizes.c // sizes.groups * sizes.taps, sizes.o // sizes.groups
    if sizes.transposed:  # each input place times each tap of each filter, then overlapping results add up
        each, filters = sizes.c // sizes.groups, filters * sizes.taps
    places = sizes.n * sizes.places
    busy = f"{min(places, array.rows)}x{min(filters, array.columns)}"
    words = f"{busy} busy" if sizes.groups == 1 else f"{sizes.groups} products, {busy} busy"
    return sizes.groups * product_cycles(array, places, each, filters), words


def line_axis(sizes: Contraction) -> int | None:
    """0 for a depthwise k×1, 1 for a 1×k; None for layers that run the same on a broadcasting array."""
    long = [axis for axis, taps in enumerate(sizes.kernel) if taps > 1]
    plain = sizes.transposed or not sizes.is_depthwise or len(sizes.kernel) != 2
    return None if plain or len(long) != 1 else long[0]


def _lines(array: Array, sizes: Contraction, axis: int) -> int:
    """The published formula: X lines of the padded input at a time; Y places of a line take k + Y cycles."""
    along, across = axis, 1 - axis
    lines = sizes.padded[across]
    if array.skip_lines:
        lines = sizes.out[across]
    in_rows = -(-sizes.n * lines * sizes.o // array.rows)
    passes = in_rows * (array.columns + sizes.kernel[along]) * -(-sizes.padded[along] // array.columns)
    return -(-passes // sizes.stride[along])
