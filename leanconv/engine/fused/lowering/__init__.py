"""From nodes to functions: the implementations of each kind (implementations.py), and the autotuner that chooses."""
