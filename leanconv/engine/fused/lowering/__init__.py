"""From nodes to implementations: kernels, PyTorch's operators, and the autotuner that chooses."""
