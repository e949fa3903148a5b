"""Quantized primitives at random: forms, integer weights, maps, and the comparison with the integer reference."""

import torch

from leanconv.kernels import backend
from leanconv.ops.forms import Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.integer_reference import primitive
from leanconv.ops.pool import MaxPool
from leanconv.ops.quantized import Quantization, Quantized, channels_of, inner_maps
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

AROUND = (1, 1, 1, 1)


def quantization(generator):
    scale = 0.02 + 0.05 * torch.rand(1, generator=generator).item()
    return Quantization(scale, int(torch.randint(0, 256, (1,), generator=generator)))


def quantized_form(form, generator, float_output=False):
    """The form with random quantizations of its maps."""
    inputs = tuple(quantization(generator) for _ in channels_of(form))
    output = inputs[0] if isinstance(form, MaxPool) else None if float_output else quantization(generator)
    inner = tuple(quantization(generator) for _ in range(inner_maps(form)))
    adds = isinstance(form, GatedSum) or getattr(form, "residual", False)
    return Quantized(form, inputs, output, inner, quantization(generator) if adds else None)


def weights_of(form, generator):
    """Random integer weights of a form in the order that `Quantized` says; scales that spread sums over the range."""

    def convolution(o, *sizes, count=1):
        fan = 1
        for size in sizes:
            fan *= size
        made = [torch.randint(-127, 128, (o, *sizes), generator=generator).to(torch.int8) for _ in range(count)]
        scale = 0.05 * (0.5 + torch.rand(o, generator=generator)) / (74 * 3 * fan**0.5)
        bias = torch.randint(-(1 << 12), 1 << 12, (o,), generator=generator).to(torch.int32)
        return made, [scale * 5, bias]

    def flat(parts):
        return [*parts[0], *parts[1]]

    if isinstance(form, MaxPool):
        return []
    c = sum(form.channels)
    if isinstance(form, Separable):
        made = []
        for stage in form.stages:
            for s in stage:
                made += [] if s.identity else flat(convolution(s.channels, 1, *s.kernel))
        return made + ([] if form.out_channels is None else flat(convolution(form.out_channels, form.middle, 1, 1)))
    if isinstance(form, Grouped):
        taps, rest = convolution(form.out_channels, c // form.groups, *form.kernel)
        beside = convolution(form.out_channels, c, 1, 1)[0] if form.pointwise else []
        project = [] if form.project is None else flat(convolution(form.project, form.out_channels, 1, 1))
        return [*taps, *beside, *rest, *project]
    if isinstance(form, Upsample):
        (taps,), rest = convolution(form.out_channels, c, form.factor, form.factor)
        return [taps.transpose(0, 1).contiguous(), *rest]
    affine = [torch.randn(form.out_channels, generator=generator) for _ in range(2 * form.affine)]
    return [*flat(convolution(form.out_channels, c, 1, 1)), *affine]


def byte_map(n, c, size, generator, kind="random"):
    """A map of bytes, channels_last."""
    if kind == "random":
        made = torch.randint(0, 256, (n, c, *size), generator=generator).to(torch.uint8)
    else:
        made = torch.full((n, c, *size), 255 if kind == "high" else 0, dtype=torch.uint8)
    return made.contiguous(memory_format=torch.channels_last)


def maps_of(form, n, size, generator, kind="random"):
    """The maps of a quantized form, and the averages of a gated sum."""
    inputs = [byte_map(n, c, size, generator, kind) for c in channels_of(form.form)]
    if isinstance(form.form, GatedSum):
        maps = [byte_map(n, form.width, size, generator, kind), *inputs]
        return maps, [torch.randn(n, x.shape[1], generator=generator) * 0.3 for x in maps]
    residual = byte_map(n, form.width, form.size(*size), generator, kind) if form.addend else None
    if isinstance(form.form, Separable):
        gate = torch.rand(n, form.form.middle, generator=generator) * 1.5 if form.form.gate else None
        return [*inputs, residual, gate], []
    return ([*inputs, residual] if isinstance(form.form, Grouped) else inputs), []


def assert_same_bits(form, weights, maps, averages=(), bind=None):
    """`bind`: what binds the kernel, as the backend's method does."""
    bound = (bind or backend().bind)(form, weights)
    wanted = primitive(form, maps, weights, averages)
    found = bound.run(maps, averages)
    for made, right in zip(found, wanted, strict=True):
        assert made.dtype == right.dtype
        assert made.shape == right.shape
        if not torch.equal(made, right):
            wrong = (made != right).nonzero()
            raise AssertionError(f"{len(wrong)} of {made.numel()} differ, first at {wrong[0].tolist()}: {form}")
    return found


def check(form, size, seed=0, n=2, float_output=False, kind="random", bind=None):
    generator = torch.Generator().manual_seed(seed)
    quantized = quantized_form(form, generator, float_output)
    if min(form.size(*size)) < 1:
        return
    maps, averages = maps_of(quantized, n, size, generator, kind)
    assert_same_bits(quantized, weights_of(form, generator), maps, averages, bind)


def stencil(c, *size, **rest):
    return (Stencil(0, c, *size, **rest),)


def separables(c, o):
    two = (3, 3)
    return {
        "1x1": Separable((c,), (), o, True, "relu", average=True),
        "1x1 of two": Separable((c, 3), (), o, activation="relu6", residual=True),
        "1x1 of two, whole fours": Separable((4 * c, 8), (), o),
        "3x3": Separable((c,), (stencil(c, two, padding=AROUND, activation="relu"),), o, True),
        "3x3 alone": Separable((c,), (stencil(c, two, padding=AROUND),), activation="relu", average=True),
        "3x3 alone, residual": Separable((c,), (stencil(c, two, padding=AROUND),), residual=True),
        "3x3/2": Separable((c,), (stencil(c, two, (2, 2), padding=AROUND, activation="relu6"),), o),
        "3x3/2 uneven": Separable((c,), (stencil(c, two, (2, 2), padding=(0, 1, 0, 1)),), o),
        "chain": Separable(
            (c, 5),
            (
                stencil(c + 5, two, padding=AROUND),
                stencil(c + 5, two, dilation=(2, 2), padding=(2, 2, 2, 2), activation="relu"),
            ),
            o,
            True,
            "relu",
            average=True,
        ),
        "chain of lines": Separable(
            (c,), (stencil(c, (1, 5), padding=(0, 0, 2, 2)), stencil(c, (5, 1), padding=(2, 2, 0, 0))), o
        ),
        "chain, second strided": Separable(
            (c,), (stencil(c, two, padding=AROUND), stencil(c, two, (2, 2), padding=AROUND)), o
        ),
        "2x2": Separable((c,), (stencil(c, (2, 2), padding=(1, 0, 1, 0)),), o),
        "7x7": Separable((c,), (stencil(c, (7, 7), padding=(3, 3, 3, 3)),), o, activation="hardswish"),
        "5x5/2": Separable((c,), (stencil(c, (5, 5), (2, 2), padding=(2, 2, 2, 2)),), o),
        "1x11": Separable((c,), (stencil(c, (1, 11), padding=(0, 0, 5, 5)),), o),
        "1x3/3 d2": Separable((c,), (stencil(c, (1, 3), (1, 3), (1, 2), padding=(0, 0, 2, 2)),), o),
        "unpadded": Separable((c,), (stencil(c, two),), o),
        "side by side": Separable(
            (c + 7,),
            (
                (
                    Stencil(0, c, identity=True),
                    Stencil(c, 4, (1, 3), padding=(0, 0, 1, 1)),
                    Stencil(c + 3, 4, (3, 1), padding=(1, 1, 0, 0)),
                ),
            ),
            o,
            residual=True,
        ),
        "side by side, alone": Separable(
            (c + 2,), ((Stencil(0, c, identity=True), Stencil(c, 2, (1, 3), padding=(0, 0, 1, 1))),), residual=True
        ),
        "side by side, then 3x3": Separable(
            (c + 2,),
            (
                (Stencil(0, c, (3, 1), padding=(1, 1, 0, 0)), Stencil(0, c + 2, (1, 3), padding=(0, 0, 1, 1))),
                stencil(2 * c + 2, two, padding=AROUND),
            ),
            o,
        ),
        "every other": Separable((c,), (stencil(c, stride=(2, 2), identity=True),), o),
        "every other, alone": Separable((c,), (stencil(c, stride=(2, 2), identity=True),)),
        "gate": Separable((c, 3), (), o, gate=True, residual=True),
        "3x3 gate": Separable((c,), (stencil(c, two, padding=AROUND, activation="hardswish"),), o, gate=True),
        "sum": Separable((c,), (), residual=True, activation="relu", average=True),
        "requantized": Separable((c, 3), ()),
    }


def grouped_forms(c, o):
    """Forms of 4·c channels."""
    made, wide, halves, three = {}, (4 * c,), (2 * c, 2 * c), (3, 3)
    for groups, interleaved, pointwise in [(1, False, False), (2, False, True), (4, True, True), (4, True, False)]:
        name = f"g{groups}{' interleaved' * interleaved}{' || 1x1' * pointwise}"
        both = {"padding": AROUND, "groups": groups, "interleaved": interleaved, "pointwise": pointwise}
        made[name] = Grouped(wide, 4 * o, three, activation="relu", average=True, **both)
        made[f"{name}, residual"] = Grouped(wide, 4 * o, three, dilation=(2, 1), residual=True, **both)
        both |= {"inner_activation": "relu", "project": o, "residual": True}
        made[f"{name}, residual, 1x1"] = Grouped(halves, 4 * o, three, (2, 2), **both)
    made["7x7/2"] = Grouped((3,), o, (7, 7), (2, 2), padding=(3, 3, 3, 3), activation="relu6")
    made["2x2"] = Grouped((c,), o, (2, 2), (2, 2))
    made["1x3"] = Grouped((c,), o, (1, 3), padding=(0, 0, 2, 0))
    return made


FEW = {
    "1x1": Separable((20, 4), (), 37, True, "relu", residual=True, average=True),
    "chain": separables(24, 40)["chain"],
    "7x7": separables(40, 8)["7x7"],
    "3x3/2": separables(16, 24)["3x3/2"],
    "gate": separables(24, 8)["3x3 gate"],
    "dense": Grouped((12,), 40, (3, 3), padding=AROUND, average=True),
    "groups, 1x1": grouped_forms(4, 6)["g4 interleaved || 1x1, residual, 1x1"],
    "gated sum": GatedSum((12, 6), 40, True, True, "relu", average=True),
    "upsample": Upsample((12,), 10, 2, True, average=True),
    "pool": MaxPool(12, (3, 3), (2, 2), AROUND, True),
}
