"""The CPU kernels of the cheap operators against the best peer that runs the same operator, layer by layer.

    python -m benchmarks.cpu_kernels [--operators splconv ...] [--layers "U-Net" ...] [--compile] [--batch 1]

Layers of U-Net (base 32, 256 px), VGG-16 on CIFAR, ResNet-50, MobileNetV1/V3 and InceptionNeXt-T; fp32, one thread,
inference, in turns in one process. BatchNorm behind the layer is folded, and a ReLU follows, for all alike.

Ours are the kernels alone, as a plan of the fused engine launches them: prepared for the shape, on memory that exists.
SPConv and SPLConv are the engine's two kernels, and PyTorch's average of the second part between them. So this table
shows how good the kernels are. `benchmarks/choices.py` shows what a user gets: it times the module that `optimize`
returns, called like the model, with a new output for each call and the engine of its choice.

Peers run at their best setting: eager channels_last, OpenVINO (latency, f32), ONNX Runtime (all optimisations), with
--compile torch.compile (freezing, channels_last; half a minute of compiling a row). malloc keeps freed memory.

"floor" = the larger of flops / peak and compulsory bytes / bandwidth, both measured here. Its flops are those of the
plain sums: a method with fewer multiplications, named beside the share ("winograd", "strassen"), can be above 100 %.
"of the peak" is the share of the peak flops alone. Among the layers of depthwise_separable is the example of Halide's
own repository (apps/depthwise_separable_conv). Its authors state 0.13 ms on 16 threads, "about 20% of peak flops".
The time of a candidate is its least CPU time over the rounds, the one figure without what other processes on a shared
machine take away. Prints geometric means; writes benchmarks/results/cpu_kernels.json.

`LEANCONV_MAX_CPU_ISA=avx2` limits ours and the peers that can be told (see `benchmarks/__init__.py`) to AVX2; the
results then go to cpu_kernels_avx2_masked.json. ONNX Runtime cannot be told, and keeps to what the CPU has. A CPU with
no more than AVX2 writes cpu_kernels_avx2.json.
"""

import argparse
import ctypes
import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import command_of, results_of
from benchmarks.kernel_layers import FUSED, launched
from benchmarks.operators import commit
from benchmarks.other_runtimes import versions
from leanconv.deploy.openvino import OpenVino
from leanconv.deploy.runtimes import OnnxRuntime
from leanconv.files import write_json
from leanconv.measure.device import describe
from leanconv.measure.hardware.roofline import Peaks, peaks
from leanconv.nn import get, make, parse
from leanconv.spec import ConvSpec
from leanconv.table import table

DENSE = {
    "U-Net e1 32→32 256": (32, 32, 3, 256), "U-Net e2 64→64 128": (64, 64, 3, 128),
    "U-Net e3 128→128 64": (128, 128, 3, 64), "U-Net e4 256→256 32": (256, 256, 3, 32),
    "U-Net b 512→512 16": (512, 512, 3, 16), "U-Net d1 64→32 256": (64, 32, 3, 256),
    "VGG 64→64 32": (64, 64, 3, 32), "VGG 128→256 8": (128, 256, 3, 8), "VGG 512→512 4": (512, 512, 3, 4),
    "VGG 512→512 2": (512, 512, 3, 2), "ResNet 64→64 56": (64, 64, 3, 56), "ResNet 128→128 28": (128, 128, 3, 28),
    "ResNet 256→256 14": (256, 256, 3, 14), "ResNet 512→512 7": (512, 512, 3, 7),
    "MobileNetV1 32→64 112": (32, 64, 3, 112), "MobileNetV1 512→512 14": (512, 512, 3, 14),
    "MobileNetV1 1024→1024 7": (1024, 1024, 3, 7),
}  # fmt: skip
DEPTHWISE = {
    "MobileNetV3 72 5×5 28": (72, 72, 5, 28), "MobileNetV3 240 5×5 14": (240, 240, 5, 14),
    "MobileNetV3 576 5×5 7": (576, 576, 5, 7), "InceptionNeXt 96 56": (96, 96, 7, 56),
    "InceptionNeXt 192 28": (192, 192, 7, 28), "InceptionNeXt 384 14": (384, 384, 7, 14),
    "InceptionNeXt 768 7": (768, 768, 7, 7),
}  # fmt: skip
# Of one operator, at a batch of its own: C, O, kernel, size, batch.
EXAMPLES = {"depthwise_separable": {"Halide's example 32→16 112, batch 4": (32, 16, 3, 112, 4)}}
OPERATORS = (
    "depthwise_separable", "group_pointwise", "spconv", "splconv", "hetconv", "sic", "xsepconv", "inception_dw",
    "fuseconv",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS))
    parser.add_argument("--layers", nargs="+", default=[""], help="those whose name contains one of these")
    parser.add_argument("--compile", action="store_true", help="torch.compile among the peers")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="of CPU time for timing a row")
    parser.add_argument("--resume", action="store_true", help="leave out rows that --out has of this commit")
    parser.add_argument("--out", type=Path, default=results_of("cpu_kernels"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    top, here = peaks(clock="cpu"), commit()
    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    alike = old.get("batch") == arguments.batch and old.get("machine") == describe("cpu")
    rows = old["rows"] if alike else []  # each stays until it is measured again
    command = command_of("cpu_kernels")
    report = {
        "command": command,
        "commit": here,
        "machine": describe("cpu"),
        "versions": versions(["openvino", "onnxruntime"]),
        "peaks": top.to_dict(),
        "batch": arguments.batch,
    }
    print(top, flush=True)
    for operator in arguments.operators:
        for place, spec in places(operator, arguments.layers, arguments.batch).items():
            held = next((row for row in rows if (row["operator"], row["layer"]) == (operator, place)), None)
            if held is None or not (arguments.resume and held.get("commit") == here):
                found = measured(operator, place, spec, top, arguments) | {"commit": here}
                rows = [row for row in rows if row is not held] + [found]
                write_json(arguments.out, report | {"rows": in_order(rows)})
        shown = [row for row in in_order(rows) if row["operator"] == operator]
        if shown:
            print(show(operator, shown), end="\n\n", flush=True)
    if rows:
        print(f"all: {mean_of(rows)}")


def places(operator: str, words: list[str], batch: int = 1) -> dict[str, ConvSpec]:
    """The layers that an operator stands in, those whose name contains one of the words."""
    depthwise = "depthwise" in get(operator).replaces and "dense" not in get(operator).replaces
    layers = {place: (*sizes, batch) for place, sizes in (DEPTHWISE if depthwise else DENSE).items()}
    return {
        place: ConvSpec.of(c, o, k, 1, k // 2, groups=c if depthwise else 1, bias=False, n=n, h=size, w=size)
        for place, (c, o, k, size, n) in (layers | EXAMPLES.get(operator, {})).items()
        if any(word in place for word in words)
    }


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows operator by operator, layer by layer, whichever was measured last."""
    layers = [*DENSE, *DEPTHWISE, *(place for each in EXAMPLES.values() for place in each)]
    return sorted(rows, key=lambda row: (OPERATORS.index(row["operator"]), layers.index(row["layer"])))


def keep_freed_memory() -> None:
    """Let malloc keep what is freed: else every large output is fresh pages, which cost more than many of the layers.

    For all candidates alike; `optimize` and the runtimes have arenas of their own for this.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def least(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The least CPU time of each in ms, in turns for that many CPU seconds, at least five rounds."""
    found = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()
    # Seconds of the clock would be a few rounds on a busy machine: too few for one that nothing disturbs.
    end, rounds, orders = time.process_time() + seconds, 0, random.Random(0)
    while rounds < 5 or (time.process_time() < end and rounds < 500):
        for name in orders.sample(list(calls), len(calls)):  # else each would always follow the same other
            start = time.process_time()  # a runtime may compute in a thread of its own
            calls[name]()
            found[name] = min(found[name], 1e3 * (time.process_time() - start))
        rounds += 1
    return found


@torch.no_grad()
def measured(operator: str, place: str, spec: ConvSpec, top: Peaks, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: our time, each peer's, the floor. Raises RuntimeError where our numbers are not the layer's."""
    torch.manual_seed(0)
    layer = make(operator, **spec.arguments()).eval()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    layer = layer.fold()
    model = nn.Sequential(layer, nn.ReLU()).eval()
    x = torch.randn(spec.n, spec.c, spec.h, spec.w).contiguous(memory_format=torch.channels_last)
    ours, methods = launched(FUSED[parse(operator)[0]](layer), x)
    exact, found = model(x), ours()
    error = ((exact - found).abs().max() / exact.abs().max()).item()
    if error > 1e-5:
        raise RuntimeError(f"{operator} at {place}: off by {error:.1e}: nothing is timed before that is mended")
    calls: dict[str, Callable[[], object]] = {"ours": ours}
    calls |= peers(model, x, arguments.compile)
    times = least(calls, arguments.seconds)
    cost = type(layer).cost(spec) if hasattr(type(layer), "cost") else get(parse(operator)[0]).cost(spec)
    moved = 4 * (x.numel() + spec.n * spec.p * spec.q * spec.o + cost.params)
    floor_ms, bound_by = top.floor_ms(cost.executed_macs, moved)
    rivals = {name: ms for name, ms in times.items() if name != "ours"}
    best = min(rivals, key=lambda name: rivals[name])
    return {
        "operator": operator,
        "layer": place,
        "macs": cost.executed_macs,
        "ms": times,
        "best_peer": best,
        "speedup": rivals[best] / times["ours"],
        "floor_ms": floor_ms,
        "bound_by": bound_by,
        "of_floor": floor_ms / times["ours"],
        "of_peak": top.floor_ms(cost.executed_macs, 0)[0] / times["ours"],
        "error": error,
        "methods": sorted(methods - {"direct"}),
    }


def peers(model: nn.Module, x: Tensor, compiled: bool) -> dict[str, Callable[[], object]]:
    """The same layer on each runtime that is installed."""
    last = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls: dict[str, Callable[[], object]] = {"channels_last": lambda: last(x)}
    plain = x.contiguous()
    try:
        import openvino

        converted = OpenVino(openvino.convert_model(model, example_input=plain), threads=1, shapes=[plain.shape])
        calls["OpenVINO"] = lambda: converted(plain)
    except ImportError:
        pass
    try:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            torch.onnx.export(model, (plain,), str(path), dynamo=True, verbose=False)
            session = OnnxRuntime(path, threads=1)
        calls["ONNX Runtime"] = lambda: session(plain)
    except ImportError:
        pass
    if compiled:
        torch._dynamo.reset()
        frozen = torch.compile(last, dynamic=False, options={"freezing": True})
        calls["compile"] = lambda: frozen(x)
    return calls


def show(operator: str, rows: list[dict[str, Any]]) -> str:
    """The rows of one operator and their means."""
    names = list(rows[0]["ms"])
    lines = [
        [
            row["layer"],
            *(f"{row['ms'][name]:.3f}" for name in names),
            f"{row['speedup']:.2f}x {row['best_peer']}",
            " ".join([f"{row['of_floor']:.0%}", row["bound_by"], *row.get("methods", [])]),
            f"{row['of_peak']:.0%}" if "of_peak" in row else "-",
        ]
        for row in rows
    ]
    columns = ["layer", *(f"{name} ms" for name in names), "against the best peer", "of the floor", "of the peak"]
    return table(columns, lines, title=operator, note=f"{operator}: {mean_of(rows)}")


def mean_of(rows: list[dict[str, Any]]) -> str:
    """Geometric mean and worst of the speed-ups; median share of the floor."""
    gains = sorted(row["speedup"] for row in rows)
    shares = sorted(row["of_floor"] for row in rows)
    geometric = math.exp(sum(map(math.log, gains)) / len(gains))
    return f"{geometric:.2f}x the best peer (worst {gains[0]:.2f}x); median {shares[len(shares) // 2]:.0%} of the floor"


if __name__ == "__main__":
    main()
