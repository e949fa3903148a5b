"""Data references, `place?key=value&key=value`: the place, and the options that both tasks share."""

import os

from leanconv.errors import BadInput
from leanconv.text import one_line


def parse(ref: str) -> tuple[str, dict[str, str]]:
    """`place?key=value&key=value` -> place and options. A folder whose name holds a `?` is taken as it is."""
    place, mark, query = ref.partition("?")
    if not mark or os.path.isdir(ref):
        return ref, {}
    options: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise BadInput(f"data {ref!r}: options are written ?key=value&key=value, got {part!r}")
        if key in options:
            raise BadInput(f"data {ref!r}: {key} is given twice")
        options[key] = value
    return place, options


def side_of(ref: str) -> int | None:
    """The option `side` of a reference: the limit of the longer side in pixels; None: no limit."""
    options = parse(ref)[1]
    return number(ref, "side", options["side"], 16, 65535) if "side" in options else None


def bits_option(ref: str, options: dict[str, str]) -> int | None:
    """The option `bits` of a reference. Raises BadInput unless it is a number of bits."""
    return number(ref, "bits", options["bits"], 8, 16) if "bits" in options else None


def number(ref: str, key: str, value: str, low: int, high: int) -> int:
    """A whole number among a reference's options. Raises BadInput outside of low ... high."""
    if not value.isascii() or not value.isdigit() or len(value) > 18 or not low <= int(value) <= high:
        raise BadInput(f"data {one_line(repr(ref), most=200)}: {key}={value[:20]}: a whole number from {low} to {high}")
    return int(value)
