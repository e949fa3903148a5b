"""Halide itself, imported when it is first needed."""

import functools
from typing import Any

from leanconv.extras import needs


@functools.lru_cache(1)
def halide() -> Any:
    """The module `halide`. Raises MissingExtra with the way to get it."""
    with needs("halide", "cpu"):
        import halide
    return halide
