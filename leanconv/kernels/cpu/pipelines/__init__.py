"""The kernels in Halide, and what is linked into each: all that the cache's keys hash."""
