"""Primitives on 8-bit integers against the float32 kernels: the layers of an SPLConv U-Net, a MobileNet, a ResNet.

    python -m benchmarks.quantized_layers [--only WORD ...] [--rounds 40] [--threads 1]

Both are launched as a plan launches them, in turns. Prints the time of each (the fifth least of the rounds), how much
faster the integers are, and their products per second. Weights and maps are random; the integer weights are those of
`ops.integer_weights`.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels import backend
from leanconv.kernels.cpu.bound.base import PreparedKernel
from leanconv.ops.forms import Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.integer_reference import quantized
from leanconv.ops.integer_weights import integer_weights
from leanconv.ops.pool import MaxPool
from leanconv.ops.quantized import Quantization, Quantized, channels_of, inner_maps
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample
from leanconv.table import table

ONE, TWO = (1, 1, 1, 1), (2, 2, 2, 2)
MAP, RELU = Quantization(0.03, 128), Quantization(0.02, 0)


def layers() -> dict[str, tuple[Any, int]]:
    """Each layer's form and the side of its map."""
    made: dict[str, tuple[Any, int]] = {}
    for c, o, side in [(16, 32, 512), (32, 64, 256), (64, 128, 128), (128, 256, 64), (256, 512, 32)]:
        stages = ((Stencil(0, c, (3, 3), padding=ONE),), (Stencil(0, c, (3, 3), dilation=(2, 2), padding=TWO),))
        made[f"SPLConv, first branch {c} to {o}"] = Separable((c,), stages, o, True, "relu", average=True), side
        made[f"SPLConv, gated sum {c} to {o}"] = GatedSum((c,), o, True, True, "relu", average=True), side
    made["transposed 2x2 64 to 32"] = Upsample((64,), 32, 2, True), 256
    made["image, 3x3 3 to 32"] = Grouped((3,), 32, (3, 3), padding=ONE, bias=True, activation="relu"), 512
    made["1x1 32 to 1"] = Separable((32,), (), 1, True), 512
    made["max-pooling 32"] = MaxPool(32, average=True), 512
    for c, o, side, stride in [(128, 128, 56, 1), (128, 256, 56, 2), (512, 512, 14, 1)]:
        stage = (Stencil(0, c, (3, 3), (stride, stride), padding=ONE, bias=True, activation="relu"),)
        made[f"depthwise 3x3/{stride}, 1x1 {c} to {o}"] = Separable((c,), (stage,), o, True, "relu"), side
    for c, side in [(64, 56), (256, 14)]:
        made[f"dense 3x3 {c} to {c}"] = Grouped((c,), c, (3, 3), padding=ONE, bias=True, activation="relu"), side
    groups = Grouped((64,), 64, (3, 3), padding=ONE, groups=4, pointwise=True, bias=True)
    return made | {"HetConv 64 to 64, 4 groups": (groups, 56)}


def random_weights(form: Any) -> list[Tensor]:
    """Float weights in the form's order."""

    def filters(*size: int) -> Tensor:
        return torch.randn(size) / math.prod(size[1:]) ** 0.5

    if isinstance(form, MaxPool):
        return []
    c, o = sum(form.channels), form.width
    if isinstance(form, Upsample):
        return [filters(c, o, 2, 2), torch.randn(o)]
    if isinstance(form, GatedSum):
        return [filters(o, c, 1, 1), *(torch.randn(o) for _ in range(3))]
    if isinstance(form, Grouped):
        beside = [filters(o, c, 1, 1)] if form.pointwise else []
        return [filters(o, c // form.groups, *form.kernel), *beside, torch.randn(o)]
    stencils = [s for stage in form.stages for s in stage]
    taps = [w for s in stencils for w in [filters(s.channels, 1, *s.kernel), *[torch.randn(s.channels)] * s.bias]]
    return [*taps, filters(o, form.middle, 1, 1), torch.randn(o)]


def launched(kernel: PreparedKernel | None, maps: Sequence[Tensor], averages: Sequence[Tensor]) -> Callable[[], float]:
    """A call of the kernel on memory of its own, which gives its seconds."""
    if kernel is None:
        raise RuntimeError("no kernels here: see `leanconv doctor`")
    size = math.prod(kernel.size) * kernel.dtype.itemsize
    result = backend().allocate(size, huge=True)[:size].view(kernel.dtype).as_strided(kernel.size, kernel.strides)
    operands = [*maps, result, *[torch.empty(kernel.size[:2])] * kernel.average]
    launch = kernel.launch(averages)
    for index, tensor in enumerate(operands):
        launch.put(index, tensor)
    batch = backend().batch([launch])
    return lambda _kept=operands: batch.timed()[0]  # type: ignore[misc]


@torch.no_grad()
def row(name: str, form: Any, side: int, rounds: int) -> list[str]:
    """One layer's line of the table."""
    inputs = tuple(MAP for _ in channels_of(form))
    blend = isinstance(form, GatedSum)
    output = MAP if isinstance(form, MaxPool) else None if name == "1x1 32 to 1" else RELU
    integers = Quantized(form, inputs, output, (MAP,) * inner_maps(form), RELU if blend else None)
    weights = random_weights(form)
    widths = [form.width] * blend + list(channels_of(form))
    maps = [torch.randn(1, c, side, side).contiguous(memory_format=torch.channels_last) for c in widths]
    if name.startswith("image"):
        maps = [x.contiguous() for x in maps]
        small = maps
    else:
        small = [quantized(x, by) for x, by in zip(maps, (RELU,) * blend + inputs, strict=True)]
    averages = [x.mean((2, 3)) for x in maps] if blend else []
    absent = [None, None] if isinstance(form, Separable) else [None] if isinstance(form, Grouped) else []
    pair = [(form, weights, maps), (integers, integer_weights(integers, weights), small)]
    bound: list[Any] = [backend().bind(each, numbers) for each, numbers, _ in pair]
    calls = [
        launched(each.prepare(*given, *absent), given, averages) for each, (*_, given) in zip(bound, pair, strict=True)
    ]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for spent, call in zip(times, calls, strict=True):
            spent.append(call())
    plain, lean = (sorted(spent)[min(4, rounds - 1)] for spent in times)
    rate = f"{form.macs(side, side) / lean / 1e9:.0f}"
    return [name, f"{side}", f"{plain * 1e3:.2f}", f"{lean * 1e3:.2f}", f"{plain / lean:.2f}", rate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="layers whose names have one of these words")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    chosen = {name: each for name, each in layers().items() if any(word in name for word in arguments.only)}
    rows = [row(name, form, side, arguments.rounds) for name, (form, side) in chosen.items()]
    columns = ["layer", "side", "float32 ms", "int8 ms", "times faster", "int8 GMAC/s"]
    print(table(columns, rows, title=f"8-bit integers against float32, batch 1, threads: {arguments.threads}"))


if __name__ == "__main__":
    main()
