"""Data sets: images, masks, labels and splits, and batches of them."""
