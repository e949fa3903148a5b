"""The fair tolerance: as near to float64 as twice PyTorch's own distance; and maps of every memory layout."""

import torch

DTYPES = [torch.float32, torch.bfloat16]


def assert_no_worse(fused, eager, exact, factor=2.0, dtype=torch.float32, terms=0):
    """`fused` may be at most `factor` times as far from the float64 answer as PyTorch in the maps' dtype.

    Plus one unit in the last place of the largest number, half of one in bfloat16 (what rounding the answer may cost):
    PyTorch is now and then exact by luck. `terms`: of a sum in float32, one after the other; PyTorch's may be in
    blocks, which round less.
    """
    assert fused.shape == exact.shape
    if fused.numel() == 0:
        return
    assert eager.isfinite().all()
    error, allowed = (fused - exact).abs().max(), factor * (eager - exact).abs().max()
    ulp = exact.abs().max() * torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 0.5)
    ulp *= max(1.0, terms**0.5 / 2)
    assert error <= allowed + ulp, f"max error {error:.2e}, PyTorch's own {allowed / factor:.2e}"


def laid_out(x, how):
    """The same numbers in another memory layout."""
    if how == "nchw":
        return x.contiguous()
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    if how == "slice":  # channels of a wider map
        wide = torch.full((n, c + 3, h, w), float("nan"), dtype=x.dtype).contiguous(memory_format=torch.channels_last)
        wide[:, 2 : c + 2] = x
        return wide[:, 2 : c + 2]
    wide = torch.full((n, c, h + 1, w + 2), float("nan"), dtype=x.dtype).contiguous(
        memory_format=torch.channels_last
    )  # "crop"
    wide[:, :, 1:, 1:-1] = x
    return wide[:, :, 1:, 1:-1]


def weights_of(form):
    """Random weights of a separable form, in its order."""
    made = []
    for stage in form.stages:
        for s in stage:
            made += [] if s.identity else [torch.randn(s.channels, 1, *s.kernel)]
            made += [torch.randn(s.channels)] if s.bias else []
    if form.out_channels is not None:
        made.append(torch.randn(form.out_channels, form.middle, 1, 1))
        made += [torch.randn(form.out_channels)] if form.bias else []
    return made
