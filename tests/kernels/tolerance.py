"""The fair tolerance: as near to float64 as twice PyTorch's own distance."""

import torch


def assert_no_worse(fused, eager, exact, factor=2.0):
    """`fused` may be at most `factor` times as far from the float64 answer as PyTorch in float32.

    Plus one unit in the last place of the largest number: PyTorch is now and then exact by luck.
    """
    assert fused.shape == exact.shape
    if fused.numel() == 0:
        return
    error, allowed = (fused - exact).abs().max(), factor * (eager - exact).abs().max()
    ulp = exact.abs().max() * torch.finfo(torch.float32).eps
    assert error <= allowed + ulp, f"max error {error:.2e}, PyTorch's own {allowed / factor:.2e}"
