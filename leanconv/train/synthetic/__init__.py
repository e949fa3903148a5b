"""The synthetic wafer: drawn images and masks."""
