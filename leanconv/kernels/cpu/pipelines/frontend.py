"""The Halide front end, imported on first use: it is an optional extra."""

import functools
from typing import Any

from leanconv.extras import needs


@functools.lru_cache(1)
def halide() -> Any:
    """The module `halide`. Raises MissingExtra, which says how to install it."""
    with needs("halide", "cpu"):
        import halide
    return halide
