"""Hardware models: rooflines, systolic arrays and multiplier lanes."""
