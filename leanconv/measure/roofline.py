"""The device's peaks, with their source, and what bounds a layer: arithmetic or memory traffic.

floor = max(2·MACs / peak flops, bytes / bandwidth), the least time a perfect kernel could take
(Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4)).
"""

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch

from leanconv.measure.latency import once_ms

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
    """What the device can do at most, in 10⁹ flops and 10⁹ bytes a second, and where that is from."""

    gflops: float
    gbytes_s: float
    source: str

    def floor_ms(self, macs: int, moved: int) -> tuple[float, str]:
        """The least time of that much work, and what bounds it: "compute" or "memory"."""
        compute, memory = 2 * macs / self.gflops / 1e6, moved / self.gbytes_s / 1e6
        return (compute, "compute") if compute > memory else (memory, "memory")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"peaks: {self.gflops:.0f} GFLOP/s, {self.gbytes_s:.1f} GB/s ({self.source})"


def peaks(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Peaks:
    """The peaks of a device with its present threads: a GPU's from its data sheet, any other's measured (once)."""
    device = torch.device(device)
    if device.type == "cuda" and (known := data_sheet(torch.cuda.get_device_name(device), dtype)):
        return known
    return _measured(str(device), dtype, torch.get_num_threads())


def data_sheet(name: str, dtype: torch.dtype) -> Peaks | None:
    """The maker's figures for a GPU of that name; None for one that is not in the table."""
    for model, figures in _DATA_SHEETS.items():
        if model in name:
            kind = str(dtype).removeprefix("torch.")
            if kind == "float32" and "tf32" in figures and torch.backends.cudnn.allow_tf32:
                kind = "tf32"  # what convolutions of float32 tensors use by default
            if kind not in figures:
                return None
            return Peaks(1e3 * figures[kind], figures["GB/s"], f"NVIDIA data sheet, {model}, {kind}, dense")
    return None


@functools.cache
def _measured(device: str, dtype: torch.dtype, threads: int) -> Peaks:
    """Best of several products of square matrices, and of several copies that no cache holds."""
    side, numbers = (1024, 16 << 20) if device == "cpu" else (8192, 256 << 20)
    a = torch.randn(side, side).to(device, dtype)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        product_ms = min(once_ms(lambda: a @ a) for _ in range(6))
        copy_ms = min(once_ms(lambda: target.copy_(source)) for _ in range(6))
    kind = str(dtype).removeprefix("torch.")
    return Peaks(
        2 * side**3 / product_ms / 1e6, 2 * 4 * numbers / copy_ms / 1e6,
        f"measured here, {threads} thread{'s' * (threads > 1)}: {kind} matmul {side}³, copy of {numbers >> 18} MiB",
    )  # fmt: skip
