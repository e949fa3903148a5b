"""The synthetic wafer: images and masks that are drawn, not photographed."""
