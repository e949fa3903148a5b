"""Rewrites of the graph: exact fusion (fusion.py), and the dtypes of its values (precision.py)."""
