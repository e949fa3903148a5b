"""Segmentation and classification: loss, scores and data of each."""
