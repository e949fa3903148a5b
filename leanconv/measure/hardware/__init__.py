"""Devices: what a measurement ran on, rooflines, systolic arrays and multiplier lanes."""
