"""Halide itself, imported when it is first needed."""

import functools
from typing import Any

from leanconv.errors import missing_extra


@functools.lru_cache(1)
def halide() -> Any:
    """The module `halide`. Raises MissingExtra with the way to get it."""
    try:
        import halide
    except ImportError as error:
        raise missing_extra("halide", "cpu") from error
    return halide
