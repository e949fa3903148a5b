"""Latency and training time, measured in turns."""
