"""Normalisations by the map's own statistics, computed around a pivot.

PyTorch's GroupNorm computes E[x²] - E[x]² of a channels_last map. Where the average is much larger than the spread,
the difference cancels: for a map of 100 ± 0.1 the result is wrong by 18. Here an average is subtracted from the map
first. That changes no result, and both terms stay small.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanconv.ops.exact import exact_mean

aten = torch.ops.aten


def _in_planes(x: Tensor) -> bool:
    return x.dim() != 4 or x.is_contiguous()


def _group_norm(x: Tensor, groups: int, *rest: Any) -> Tensor:
    if _in_planes(x):
        return aten.group_norm.default(x, groups, *rest)  # type: ignore[no-any-return]
    n, c = x.shape[:2]
    pivot = exact_mean(x).reshape(n, groups, -1).mean(2, keepdim=True)  # N G 1
    pivot = pivot.expand(n, groups, c // groups).reshape(n, c, 1, 1).to(x.dtype)
    return aten.group_norm.default(x - pivot, groups, *rest)  # type: ignore[no-any-return]


def _batch_statistics(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if _in_planes(x):
        return aten._native_batch_norm_legit.no_stats(x, *rest)  # type: ignore[no-any-return]
    pivot = exact_mean(x).mean(0)  # C
    y, mean, spread = aten._native_batch_norm_legit.no_stats(x - pivot[:, None, None].to(x.dtype), *rest)
    return y, mean + pivot, spread


# The operator that each function replaces, with the same arguments.
AROUND_A_PIVOT: dict[Any, Callable[..., Any]] = {
    aten.group_norm.default: _group_norm,
    aten._native_batch_norm_legit.no_stats: _batch_statistics,
}
