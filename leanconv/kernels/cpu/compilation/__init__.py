"""From Halide to machine code, and the cache that keeps it."""
