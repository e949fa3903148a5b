"""How much longer PyTorch's convolutions take in a half-precision type than in float32 on this CPU.

A CPU without instructions for a type converts each number by itself. On an AVX2 core, a U-Net of 1.6 s in float32 took
290 s in bfloat16.
"""

import functools

import torch
from torch import Tensor, nn

from leanconv.measure.timing.latency import once_ms

HALF = (torch.bfloat16, torch.float16)
SLOW = 4.0  # a type counts as slow from this ratio; with instructions for it, the ratio is 1 or less
CALLS = 3  # calls of each probe; the quickest one counts


def slow_type(dtype: torch.dtype) -> str:
    """Return why PyTorch's convolutions in this type are not worth a trial on this CPU, or ""."""
    if dtype not in HALF or (ratio := slowdown(dtype)) < SLOW:
        return ""
    return (
        f"PyTorch's {str(dtype).removeprefix('torch.')} convolution takes {ratio:.0f}x as long as float32 on this CPU"
    )


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether PyTorch can call oneDNN's convolutions in this type directly."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def slowdown(dtype: torch.dtype) -> float:
    """Return the time of a small convolution in `dtype` over its time in float32, each in its better layout.

    It is infinite if PyTorch has no such convolution. The probe takes a few milliseconds, once per process.
    """
    try:
        return _quickest_ms(dtype) / _quickest_ms(torch.float32)
    except RuntimeError:
        return float("inf")


def _quickest_ms(dtype: torch.dtype) -> float:
    layouts = (torch.contiguous_format, torch.channels_last)
    return min(_convolution_ms(dtype, layout) for layout in layouts)


@torch.no_grad()
def _convolution_ms(dtype: torch.dtype, layout: torch.memory_format) -> float:
    layer = nn.Conv2d(32, 32, 3, padding=1, dtype=dtype).to(memory_format=layout)
    x: Tensor = torch.ones(1, 32, 32, 32, dtype=dtype).contiguous(memory_format=layout)
    layer(x)
    return min(once_ms(lambda: layer(x), "wall") for _ in range(CALLS))
