"""Depthwise convolutions as training runs them: result and both gradients, our kernels against PyTorch's best.

    python -m benchmarks.training_kernels [--threads 1] [--dtypes float32 bfloat16] [--rounds 15] [--networks SPLConv]

Kernels of MobileNetV1, InceptionNeXt-T, XSepConv and SPLConv (U-Net base 32, 128 px; its map is half of the channels of
a wider one). PyTorch runs eager, in channels_last and contiguous; the faster of both counts. A step is the forward pass
and the backward pass through autograd; bfloat16 is what autocast makes of it: maps and weights rounded, for ours the
maps alone. The candidates take turns; each figure is a median. malloc keeps freed memory, for all alike.

"of floor": the least time of a perfect kernel (the larger of flops / peak and bytes / bandwidth, both measured here)
over ours, for the result and for the gradient of the data. One thread counts its own computing time, more threads wall
time. Prints geometric means; writes benchmarks/results/training_kernels.json.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import command_of, results_of
from benchmarks.cpu_kernels import keep_freed_memory
from benchmarks.operators import commit
from leanconv.files import write_json
from leanconv.kernels.cpu.training import data_gradient
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.measure.device import describe
from leanconv.measure.hardware.roofline import Peaks, peaks
from leanconv.measure.timing.paired import Turns
from leanconv.table import table

# Channels, side, taps, stride, dilation; "same" padding. Batch 8.
Layer = tuple[int, int, tuple[int, int], int, int]
NETWORKS: dict[str, list[Layer]] = {
    "MobileNetV1": [
        (32, 112, (3, 3), 1, 1), (64, 112, (3, 3), 2, 1), (128, 56, (3, 3), 1, 1), (128, 56, (3, 3), 2, 1),
        (256, 28, (3, 3), 1, 1), (256, 28, (3, 3), 2, 1), (512, 14, (3, 3), 1, 1), (512, 14, (3, 3), 2, 1),
        (1024, 7, (3, 3), 1, 1),
    ],
    "InceptionNeXt": [
        (channels, side, taps, 1, 1)
        for channels, side in ((12, 56), (24, 28), (48, 14), (96, 7))
        for taps in ((3, 3), (1, 11), (11, 1))
    ],
    "XSepConv": [
        (channels, side, taps, 1, 1)
        for channels, side, k in ((72, 28, 5), (240, 14, 5), (576, 7, 7))
        for taps in ((1, k), (k, 1))
    ],
    "SPLConv": [
        (channels, side, (3, 3), 1, dilation)
        for channels, side in ((16, 128), (32, 64), (64, 32), (128, 16), (256, 8))
        for dilation in (1, 2)
    ],
}  # fmt: skip
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=results_of("training_kernels"))
    arguments = parser.parse_args()
    if reason := available():
        sys.exit(f"the kernels for training do not run here: {reason}")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    clock = "cpu" if arguments.threads == 1 else "wall"
    old = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    machine, here = describe("cpu"), commit()
    command = command_of("training_kernels")
    for kind in arguments.dtypes:
        top = peaks(clock=clock)  # of float32: the kernels widen bfloat16
        for network in arguments.networks:
            rows = []
            for layer in NETWORKS[network]:
                rows.append(measured(layer, getattr(torch, kind), top, clock, arguments.rounds))
                rows[-1] |= {"network": network, "dtype": kind, "threads": arguments.threads, "clock": clock}
                rows[-1] |= {"machine": machine, "peaks": top.to_dict(), "commit": here, "command": command}
            old = [r for r in old if key_of(r) != key_of(rows[0])] + rows
            write_json(arguments.out, {"rows": old})
            print(show(network, kind, rows, top), end="\n\n", flush=True)
        here_now = key_of({"network": "", "dtype": kind, "threads": arguments.threads, "machine": machine})
        chosen = [r for r in old if key_of(r | {"network": ""}) == here_now]
        print(f"{kind}, {arguments.threads} thread(s), all: {mean([r['speedup'] for r in chosen]):.2f}x", flush=True)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """A table's place in the results. Two CPUs of one name differ in their instructions, or by a mask."""
    machine = row["machine"]
    about = row["network"], row["dtype"], row["threads"]
    return *about, machine["name"], machine.get("isa"), machine.get("max_isa")


def measured(sizes: Layer, dtype: torch.dtype, top: Peaks, clock: str, rounds: int) -> dict[str, Any]:
    """One row: times of a step, of the result and of the gradient of the data; the floor of the latter two."""
    torch.manual_seed(0)
    channels, side, taps, stride, dilation = sizes
    padding = [dilation * (k - 1) // 2 for k in taps]
    size = (BATCH, channels, side, side)
    x = torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = nn.Conv2d(channels, channels, taps, stride, tuple(padding), dilation, channels, bias=False)
    use_training_kernels_(layer)
    weight = layer.weight
    geometry = ([stride] * 2, [padding[0], padding[0], padding[1], padding[1]], [dilation] * 2)

    def in_torch(x: Tensor) -> Tensor:
        return F.conv2d(x, weight.to(dtype), None, stride, padding, dilation, channels)

    def step(run: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(x), (x, weight), grad)

    with torch.no_grad():
        grad = torch.randn_like(in_torch(x))
    plain, plain_grad = x.detach().contiguous().requires_grad_(), grad.contiguous()
    calls: dict[str, Callable[[], object]] = {
        "ours": step(layer, x, grad),
        "channels_last": step(in_torch, x, grad),
        "contiguous": step(in_torch, plain, plain_grad),
        "result": torch.no_grad()(lambda: layer(x)),
        "data": torch.no_grad()(lambda: data_gradient(grad, weight, list(size), *geometry)),
    }
    turns = Turns(calls, clock=clock)
    for _ in range(rounds + 1):
        turns.round()
    ms = {name: statistics.median(times[1:]) for name, times in turns.times.items()}
    best = min("channels_last", "contiguous", key=ms.__getitem__)
    floor_ms, bound_by = top.floor_ms(
        grad.numel() * math.prod(taps), (x.numel() + grad.numel()) * dtype.itemsize + 4 * weight.numel()
    )
    return {
        "layer": {
            "batch": BATCH,
            "channels": channels,
            "side": side,
            "taps": taps,
            "stride": stride,
            "dilation": dilation,
        },
        "ms": ms,
        "best": best,
        "speedup": ms[best] / ms["ours"],
        "floor_ms": floor_ms,
        "bound_by": bound_by,
        "of_floor": {name: floor_ms / ms[name] for name in ("result", "data")},
    }


def mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def show(network: str, kind: str, rows: list[dict[str, Any]], top: Peaks) -> str:
    body = []
    for row in rows:
        layer, ms = row["layer"], row["ms"]
        name = f"{layer['channels']}, {layer['side']}², {layer['taps'][0]}×{layer['taps'][1]}"
        name += f"/{layer['stride']}" * (layer["stride"] > 1) + f" d{layer['dilation']}" * (layer["dilation"] > 1)
        times = [f"{ms[key]:.3g}" for key in ("ours", "channels_last", "contiguous")]
        shares = [f"{100 * row['of_floor'][key]:.0f} %" for key in ("result", "data")]
        body.append([name, *times, f"{row['speedup']:.2f}x", *shares, row["bound_by"]])
    heads = ["layer", "ours ms", "channels_last ms", "contiguous ms", "speed-up"]
    heads += ["result of floor", "data of floor", "bound"]
    note = f"{top}; geometric mean {mean([row['speedup'] for row in rows]):.2f}x"
    return table(heads, body, title=f"{network}, {kind}, batch {BATCH}, {rows[0]['threads']} thread(s)", note=note)


if __name__ == "__main__":
    main()
