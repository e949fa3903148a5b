"""Primitives with their weights packed: one file a primitive."""
