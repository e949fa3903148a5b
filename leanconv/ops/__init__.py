"""Primitives of the operators: each a form and one plain PyTorch function; and the algebra of kernels."""
