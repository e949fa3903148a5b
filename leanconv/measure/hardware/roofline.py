"""The device's peaks, with their source, and a layer's bound: arithmetic or memory traffic.

floor = max(2·MACs / peak flops, bytes / bandwidth), the least time a perfect kernel could take
(Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4)).
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from leanconv.measure.hardware.number_types import has_onednn, slow_type
from leanconv.measure.timing.latency import check_clock, once_ms
from leanconv.running import untouched_random

# Calls of each product and copy, the fastest of which counts: 0.1 to 0.3 s of each on one core. A slower one has two.
MEASUREMENTS, SLOW_MS = 16, 200.0
# NVIDIA's data sheets, dense (no sparsity): TFLOP/s by number type, GB/s of memory. The first name that is part of the
# device's own name counts, so the special stands before the general.
_DATA_SHEETS: dict[str, dict[str, float]] = {
    "H200": {"float32": 67, "tf32": 495, "bfloat16": 989, "float16": 989, "GB/s": 4800},
    "H100 PCIe": {"float32": 51, "tf32": 378, "bfloat16": 756, "float16": 756, "GB/s": 2000},
    "H100": {"float32": 67, "tf32": 495, "bfloat16": 989, "float16": 989, "GB/s": 3350},
    "A100-SXM4-40GB": {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312, "GB/s": 1555},
    "A100-PCIE-40GB": {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312, "GB/s": 1555},
    "A100": {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312, "GB/s": 1935},
    "L40S": {"float32": 91.6, "tf32": 183, "bfloat16": 362, "float16": 362, "GB/s": 864},
    "NVIDIA L4": {"float32": 30.3, "tf32": 60, "bfloat16": 121, "float16": 121, "GB/s": 300},
    "Tesla T4": {"float32": 8.1, "float16": 65, "GB/s": 320},
    "V100": {"float32": 15.7, "float16": 125, "GB/s": 900},
    "RTX 4090": {"float32": 82.6, "tf32": 82.6, "bfloat16": 165, "float16": 165, "GB/s": 1008},
    "RTX 3090": {"float32": 35.6, "tf32": 35.6, "bfloat16": 71, "float16": 71, "GB/s": 936},
}


@dataclass(frozen=True)
class Peaks:
    """The device's peak rates in 10⁹ flops and 10⁹ bytes a second, and their source."""

    gflops: float
    gbytes_s: float
    source: str

    def floor_ms(self, macs: int, moved: int) -> tuple[float, str]:
        """The roofline floor of an amount of work, and its bound: "compute" or "memory"."""
        compute, memory = 2 * macs / self.gflops / 1e6, moved / self.gbytes_s / 1e6
        return (compute, "compute") if compute > memory else (memory, "memory")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"peaks: {self.gflops:.0f} GFLOP/s, {self.gbytes_s:.1f} GB/s ({self.source})"


def peaks(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, clock: str = "wall") -> Peaks:
    """The peaks of a device with its present threads: a GPU's from its data sheet, any other's measured (once).

    `clock`: as in `latency.interleave`; "cpu" leaves out what a crowded machine takes away, of one thread.
    """
    device = torch.device(device)
    if device.type == "cuda" and (known := data_sheet(torch.cuda.get_device_name(device), dtype)):
        return known
    check_clock(clock)
    with untouched_random():
        found = _measured(str(device), dtype, torch.get_num_threads(), clock)
        if dtype is not torch.int8 or device.type != "cpu":
            return found
        # PyTorch's product of int8 is slow where the processor has no instruction for it (VNNI).
        wide = _measured(str(device), torch.float32, torch.get_num_threads(), clock)
        return max(found, wide, key=lambda each: each.gflops)


def data_sheet(name: str, dtype: torch.dtype) -> Peaks | None:
    """The data sheet's figures for a GPU of that name; None if the table lacks it."""
    for model, figures in _DATA_SHEETS.items():
        if model in name:
            kind = str(dtype).removeprefix("torch.")
            if kind == "float32" and "tf32" in figures and torch.backends.cudnn.allow_tf32:
                kind = "tf32"  # the default of float32 convolutions
            if kind not in figures:
                return None
            return Peaks(1e3 * figures[kind], figures["GB/s"], f"NVIDIA data sheet, {model}, {kind}, dense")
    return None


@functools.cache
@torch.no_grad()
def _measured(device: str, dtype: torch.dtype, threads: int, clock: str) -> Peaks:
    """The highest rate of several products and convolutions, and of copies larger than any cache.

    Products run in float32 where PyTorch is slow in `dtype`: a kernel there multiplies in float32, too.
    """
    dtype = torch.float32 if device == "cpu" and slow_type(dtype) else dtype
    side, numbers = (768, 8 << 20) if device == "cpu" else (8192, 256 << 20)
    a = torch.randn(side, side).to(device, dtype)
    product = torch._int_mm if dtype is torch.int8 else torch.matmul
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    products: list[tuple[str, int, Callable[[], object]]] = [(f"matmul {side}³", side**3, lambda: product(a, a))]
    if device == "cpu" and has_onednn(dtype):
        products += [_convolution(c, size, dtype) for c, size in ((256, 28), (512, 14))]
    rates = {name: 2 * macs / _least_ms(call, clock) / 1e6 for name, macs, call in products}
    copy_ms = _least_ms(lambda: target.copy_(source), clock)
    fastest = max(rates, key=rates.__getitem__)
    kind = str(dtype).removeprefix("torch.")
    return Peaks(
        rates[fastest],
        2 * 4 * numbers / copy_ms / 1e6,
        f"measured here, {threads} thread{'s' * (threads > 1)}: {kind} {fastest}, copy of {numbers >> 18} MiB",
    )


def _least_ms(call: Callable[[], object], clock: str) -> float:
    """The least of `MEASUREMENTS` calls; of two, if they take seconds together."""
    least = min(once_ms(call, clock), once_ms(call, clock))
    for _ in range(MEASUREMENTS - 2 if least < SLOW_MS else 0):
        least = min(least, once_ms(call, clock))
    return least


def _convolution(c: int, size: int, dtype: torch.dtype) -> tuple[str, int, Callable[[], object]]:
    """oneDNN's 3x3 convolution with packed weights: on AMD's AVX-512 it runs a fifth faster than the matrix product."""
    x = torch.randn(1, c, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    ones, weight = [1, 1], torch.randn(c, c, 3, 3).to(dtype)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, ones, ones, ones, 1, list(x.shape))
    run = torch.ops.mkldnn._convolution_pointwise.default

    def call() -> object:
        return run(x, packed, None, ones, ones, ones, 1, "none", [], "")

    return f"convolution 3x3 of {c} channels, {size}x{size}", c * c * 9 * size * size, call
