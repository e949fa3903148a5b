"""Evaluation and prediction with a trained model."""
