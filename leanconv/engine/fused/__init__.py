"""The fused engine: capture a program, fuse it into blocks, tune each block, run a flat list of steps."""
