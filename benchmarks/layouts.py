"""Copies of maps between planes (`N C H W`) and pixels (channels_last): PyTorch's against ours, interleaved.

    python -m benchmarks.layouts [--threads 1] [--dtype float32]

Medians in milliseconds, into memory that is there.
"""

import argparse

import torch
from torch import Tensor

from leanconv.kernels import backend
from leanconv.kernels.interface import LaunchBatch
from leanconv.measure import interleave, label
from leanconv.table import table

SIZES = [(32, 256), (64, 128), (256, 32), (64, 56), (128, 28), (512, 14), (1024, 7), (72, 28), (19, 61)]


def row(c: int, size: int, dtype: torch.dtype) -> list[str]:
    """Both ways for one map."""
    planes = torch.randn(1, c, size, size).to(dtype)
    pixels = planes.contiguous(memory_format=torch.channels_last)
    return [f"{c}x{size}x{size}", *both(planes, torch.empty_like(pixels)), *both(pixels, torch.empty_like(planes))]


def both(source: Tensor, made: Tensor) -> list[str]:
    """PyTorch's time and ours, and how many times as fast; what is copied is compared first."""
    copy = copied(source, made)
    times = interleave(
        {"torch": lambda: made.copy_(source), "ours": copy},
        budget_s=0.5,
        min_rounds=20,
        max_rounds=400,
        primed=True,
    )
    theirs, ours = times["torch"].median_ms, times["ours"].median_ms
    return [f"{theirs:.3f}", f"{ours:.3f}", f"{theirs / ours:.1f}x"]


def copied(source: Tensor, made: Tensor) -> LaunchBatch:
    """The copy as a plan launches it."""
    prepared = backend().copy(source, planes=made.is_contiguous())
    assert prepared is not None, "no kernels here: see `leanconv doctor`"
    launch = prepared.launch()
    launch.put(0, source)
    launch.put(1, made)
    copy = backend().batch([launch])
    copy()
    assert torch.equal(made, source)
    return copy


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    columns = ["map", "to pixels: torch", "ours", "", "to planes: torch", "ours", ""]
    print(table(columns, [row(c, size, dtype) for c, size in SIZES], title=label("cpu", dtype=dtype)))


if __name__ == "__main__":
    main()
