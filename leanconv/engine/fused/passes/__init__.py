"""Rewrites of the graph that change no result."""
