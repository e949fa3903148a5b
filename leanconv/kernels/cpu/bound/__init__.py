"""Primitives with their weights packed; `resample.py` holds upsampling and max-pooling."""
