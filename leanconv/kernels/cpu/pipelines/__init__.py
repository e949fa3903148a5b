"""Halide pipelines, one file a kernel, and the C stub linked into each. The cache's keys hash this folder."""
