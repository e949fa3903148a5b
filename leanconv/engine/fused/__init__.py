"""The engine of whole blocks: capture, rewrite, choose each block's form, run a flat list of steps."""
