"""Products on tiles: the emulation against TDPBF16PS's definition, every primitive against integers, AMX compiled.

The emulation and AMX are one source, but for eight macros. Here the emulation runs, and AVX512-BF16 where it is.
"""

import ctypes
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from leanconv.kernels.cpu.binders import bind_to_tiles
from leanconv.kernels.cpu.bound.tiles import why_not
from leanconv.kernels.cpu.compilation.build import RUNTIME, compiler
from leanconv.kernels.cpu.runtime import tiles
from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import Stencil
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.grouped import Grouped, grouped, merge_groups
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable, separable
from leanconv.ops.upsample import Upsample, upsample
from tests.cpus import HASWELL, SAPPHIRE_RAPIDS, ZEN4
from tests.kernels.runtime.amx import machine_code, skip_without_amx
from tests.kernels.runtime.test_out_of_bounds import Fence, dense
from tests.kernels.tolerance import assert_no_worse, laid_out

needs_compiler = pytest.mark.skipif(not compiler(), reason="no C compiler")
pytestmark = [pytest.mark.usefixtures("halide"), needs_compiler]
AROUND = (1, 1, 1, 1)
HERE = this_cpu()
# What runs on this machine: AMX or AVX512-BF16 if it has them; and the emulation, for a processor that is not there.
TARGETS = {"emulated": Target(replace(SAPPHIRE_RAPIDS, bf16=HERE.bf16, l2=HERE.l2, lanes=HERE.lanes))}
if HERE.bf16:
    TARGETS |= {"pairs": Target(replace(HERE, amx=False))}
if HERE.amx:
    TARGETS = {"amx": Target(HERE), "pairs": TARGETS["pairs"]}


@pytest.fixture(params=sorted(TARGETS))
def target(request):
    target = TARGETS[request.param]
    assert tiles.arithmetic(target.cpu) == request.param
    return target


def whole(*size, most=3):
    """Small integers: their sums are exact in float32."""
    return torch.randint(-most, most + 1, size).float()


def maps_of(channels, n, h, w):
    return [whole(n, c, h, w).bfloat16().contiguous(memory_format=torch.channels_last) for c in channels]


class Case:
    """A primitive with integer weights: its reference in float64, and the call of either."""

    def __init__(self, op, form, weights, residual=False):
        self.op, self.form, self.weights, self.residual = op, form, weights, residual

    def maps(self, n, h, w):
        found = maps_of(self.form.channels, n, h, w)
        if self.residual:
            found += maps_of([self.form.width], n, *self.form.size(h, w))
        return found

    def run(self, bound, maps):
        count = len(self.form.channels)
        return bound(maps[:count], *maps[count:])

    def reference(self, maps, dtype=torch.float64):
        count, wide = len(self.form.channels), [x.to(dtype) for x in maps]
        return self.op(wide[:count], [w.to(dtype) for w in self.weights], self.form, *wide[count:])


def case(op, form, *sizes):
    return Case(
        op, form, [whole(*size, most=2 if len(size) == 4 else 9) for size in sizes], getattr(form, "residual", False)
    )


def stencil(c, *size, **rest):
    return (Stencil(0, c, *size, **rest),)


def cases(c, o):
    """Every form with a product, of `c` (and 3) to `o` channels."""
    square = stencil(c, (3, 3), padding=AROUND)
    whole_3x3 = Grouped((c,), o, (3, 3), padding=AROUND, bias=True, activation="relu", residual=True)
    both = ((Stencil(0, c, identity=True), Stencil(c, 3, (1, 3), padding=(0, 0, 1, 1), bias=True, activation="relu")),)
    return {
        "1x1": case(separable, Separable((c,), (), o, bias=True, activation="relu", residual=True), (o, c, 1, 1), (o,)),
        "1x1 of two": case(separable, Separable((c, 3), (), o, activation="relu6", average=True), (o, c + 3, 1, 1)),
        "stencil": case(
            separable, Separable((c,), (square,), o, bias=True, residual=True), (c, 1, 3, 3), (o, c, 1, 1), (o,)
        ),
        "two stencils": case(
            separable, Separable((c,), (square, stencil(c, (2, 1))), o), (c, 1, 3, 3), (c, 1, 2, 1), (o, c, 1, 1)
        ),
        "side by side": case(separable, Separable((c + 3,), both, o), (3, 1, 1, 3), (3,), (o, c + 3, 1, 1)),
        "every other": case(separable, Separable((c,), (stencil(c, stride=(2, 2), identity=True),), o), (o, c, 1, 1)),
        "3x3": case(
            grouped, whole_3x3, (o, c, 3, 3), (o,)
        ),
        "3x3 of two": case(grouped, Grouped((c, 3), o, (3, 3), padding=AROUND, average=True), (o, c + 3, 3, 3)),
        "3x3/2": case(grouped, Grouped((c,), o, (3, 3), (2, 2), padding=AROUND), (o, c, 3, 3)),
        "dilated": case(grouped, Grouped((c,), o, (3, 3), (1, 1), (2, 2), (2, 1, 2, 0)), (o, c, 3, 3)),
        "1x5": case(grouped, Grouped((c,), o, (1, 5), (1, 2), (1, 1), (0, 0, 3, 1)), (o, c, 1, 5)),
        "groups": case(
            grouped, Grouped((3 * c,), 3 * o, (3, 3), padding=AROUND, groups=3, bias=True), (3 * o, c, 3, 3), (3 * o,)
        ),
        "interleaved, beside a 1x1": case(
            grouped,
            Grouped((2 * c,), 2 * o, (3, 3), (2, 1), (1, 1), AROUND, 2, True, True, residual=True),
            (2 * o, c, 3, 3), (2 * o, 2 * c, 1, 1),
        ),
        "few channels": case(grouped, Grouped((2,), o, (3, 3), (2, 1), padding=AROUND), (o, 2, 3, 3)),
        "transposed": case(upsample, Upsample((c, 3), o, 2, True, "relu"), (c + 3, o, 2, 2), (o,)),
        "transposed 3x3": case(upsample, Upsample((c,), o, 3, average=True), (c, o, 3, 3)),
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("c", "o", "n", "h", "w"), [
    (16, 32, 2, 5, 7), (32, 33, 1, 3, 40), (19, 5, 2, 4, 3), (48, 1, 1, 9, 9), (34, 80, 1, 2, 13), (1, 17, 3, 3, 3),
])  # fmt: skip
def test_integers_are_exact(target, c, o, n, h, w):
    """Odd channels, outputs and pixels; results only rounded to bfloat16. Averages are those of what was stored."""
    torch.manual_seed(c)
    for name, one in cases(c, o).items():
        maps = one.maps(n, h, w)
        y, means = one.run(bind_to_tiles(one.form, one.weights, target), maps)
        want, _ = one.reference(maps)
        assert torch.equal(y, want.bfloat16()), name
        if one.form.average:
            torch.testing.assert_close(means, y.double().mean((2, 3)).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_random_shapes_are_exact(target):
    torch.manual_seed(7)
    draw = np.random.default_rng(7).integers
    for _ in range(12):
        c, o, n, h, w = (int(draw(1, top)) for top in (70, 70, 3, 12, 40))
        names = list(cases(c, o))
        name = names[int(draw(len(names)))]
        one = cases(c, o)[name]
        maps = one.maps(n, max(h, 3), max(w, 3))
        y, _ = one.run(bind_to_tiles(one.form, one.weights, target), maps)
        assert torch.equal(y, one.reference(maps)[0].bfloat16()), (name, c, o, n, h, w)


def blend(c, o):
    form = GatedSum((c, 3), o, bias=True, affine=True, activation="relu", average=True)
    return form, [torch.randn(o, c + 3), torch.randn(o), torch.rand(o) + 0.5, torch.randn(o)]


@torch.no_grad()
@pytest.mark.parametrize(("c", "o"), [(16, 32), (21, 19), (64, 128)])
def test_gated_sums(target, c, o):
    form, weights = blend(c, o)
    a, *inputs = [dense(torch.bfloat16, 2, each, 6, 7) for each in (o, c, 3)]
    means = [x.float().mean((2, 3)) for x in (a, *inputs)]
    bound = bind_to_tiles(form, weights, target)
    y, average = bound(a, inputs, means[0], means[1:])
    exact = gated_pointwise(
        a.double(), [x.double() for x in inputs], [w.double() for w in weights], form, *_double(means)
    )[0]
    eager = gated_pointwise(a, inputs, [w.bfloat16() for w in weights], form, means[0], means[1:])[0]
    assert_no_worse(y, eager, exact, dtype=torch.bfloat16)
    torch.testing.assert_close(average, y.float().mean((2, 3)), rtol=1e-4, atol=1e-4)
    in_place = bound.prepare_in_place(a, *inputs)
    launch = in_place.launch([x.contiguous() for x in means])
    same, made = a.clone(memory_format=torch.preserve_format), torch.empty(2, o)
    for index, x in enumerate((same, *inputs, same, made)):
        launch.put(index, x)
    from leanconv.kernels.cpu.runtime.launch import LaunchBatch

    LaunchBatch([launch], 1)()
    assert torch.equal(same, y)
    assert torch.equal(made, average)


def _double(means):
    return means[0].double(), [x.double() for x in means[1:]]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["nchw", "slice", "crop"])
def test_layouts(target, layout):
    """Beside the numbers of a map lie NaNs."""
    torch.manual_seed(0)
    for name, one in cases(24, 18).items():
        maps = one.maps(2, 6, 9)
        y, _ = one.run(bind_to_tiles(one.form, one.weights, target), [laid_out(x, layout) for x in maps])
        assert torch.equal(y, one.reference(maps)[0].bfloat16()), name


@torch.no_grad()
def test_an_image_in_planes(target):
    one = case(grouped, Grouped((3,), 20, (3, 3), (2, 2), padding=AROUND, bias=True), (20, 3, 3, 3), (20,))
    x = whole(2, 3, 7, 9).bfloat16()
    bound = bind_to_tiles(one.form, one.weights, target)
    assert bound.takes(x, None)
    assert torch.equal(bound([x])[0], one.reference([x])[0].bfloat16())


@torch.no_grad()
def test_nan_spreads_as_in_pytorch(target):
    """But groups are multiplied together: there it reaches all outputs of a pixel, as in the dense convolution."""
    torch.manual_seed(0)
    for name, one in cases(19, 21).items():
        x, *_ = maps = one.maps(2, 7, 22)
        x[0, 1, 4, 3], x[1, -1, 0, 21], x[1, 0, 6, 0] = torch.nan, torch.nan, torch.nan
        y, want = one.run(bind_to_tiles(one.form, one.weights, target), maps)[0], one.reference(maps, torch.float32)[0]
        reached = want.isnan()
        if one.op is grouped:
            form, weights = merge_groups(one.form, one.weights, 1)
            reached = Case(grouped, form, weights, one.residual).reference(maps, torch.float32)[0].isnan()
        assert torch.equal(y.isnan(), reached), name
        assert torch.equal(y.masked_fill(reached, 0), want.masked_fill(reached, 0).bfloat16()), name


@torch.no_grad()
@pytest.mark.parametrize("name", tiles.ACTIVATIONS)
def test_activations(target, name):
    from leanconv.ops.activations import ACTIVATIONS

    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -3.0, 3.0, 6.0, 7.0, -90.0, 1e30, -1e30, 0.5]).bfloat16()
    x = x.view(1, 1, 3, 4)
    y, _ = bind_to_tiles(Separable((1,), (), 1, activation=name), [torch.ones(1, 1)], target)([x])
    torch.testing.assert_close(y, ACTIVATIONS[name](x.float()).bfloat16(), rtol=0.008, atol=1e-6, equal_nan=True)


@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(target):
    before, seen = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            for name, one in cases(40, 50).items():
                weights = [torch.randn_like(w) for w in one.weights]
                maps = [torch.randn(x.shape).bfloat16() for x in one.maps(2, 15, 31)]
                made = one.run(bind_to_tiles(one.form, weights, target), maps)
                assert all(map(torch.equal, seen.setdefault(name, made), made)), (name, threads)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize(("c", "size"), [(5, (3, 5)), (32, (3, 19)), (24, (2, 2))])
def test_nothing_beside_the_maps_is_touched(target, c, size):
    fence = Fence()
    for name, one in cases(c, 18).items():
        if min(one.form.size(*size)) < 1:
            continue
        maps = one.maps(2, *size)
        bound = bind_to_tiles(one.form, one.weights, target)
        given = len(one.form.channels)
        rest = maps[given:] or [None] * isinstance(one.form, Separable | Grouped)
        gate = [None] * isinstance(one.form, Separable)
        fence.add(name, bound, [*maps[:given], *rest, *gate])
    form, weights = blend(c, 18)
    maps = [dense(torch.bfloat16, 2, each, *size) for each in (18, c, 3)]
    fence.add("gated sum", bind_to_tiles(form, weights, target), maps, [torch.rand(2, 3, 18)])
    form = Grouped((3,), 9, (3, 3), padding=AROUND)
    image = torch.randn(2, 3, *size).bfloat16()
    fence.add("planes", bind_to_tiles(form, [torch.randn(9, 3, 3, 3)], target), [image, None])
    fence.hold()


@torch.no_grad()
def test_no_sample_and_maps_of_float32(target):
    one = cases(8, 6)["3x3 of two"]
    bound = bind_to_tiles(one.form, one.weights, target)
    assert one.run(bound, one.maps(0, 5, 5))[0].shape == (0, 6, 5, 5)
    wide = [x.float() for x in one.maps(1, 5, 5)]
    assert torch.equal(one.run(bound, wide)[0], one.reference(wide)[0].float())


def test_what_has_no_product_on_tiles():
    plain = Separable((4,), (), 4)
    for cpu, reason in ((HASWELL, "pairs"), (ZEN4, ""), (SAPPHIRE_RAPIDS, "")):
        assert (reason in why_not(plain, Target(cpu))) if reason else not why_not(plain, Target(cpu))
    here = next(iter(TARGETS.values()))
    for form, reason in {
        MaxPool(4): "multiplies nothing",
        Separable((4,), (stencil(4, (3, 3)),)): "no 1×1",
        Separable((4,), (), 4, gate=True): "gate",
        Separable((4,), (), 4, activation="gelu"): "gelu",
        Grouped((4,), 4, (3, 3), groups=2, project=3): "behind",
        Grouped((4,), 4, (9, 9), dilation=(2, 2)): "(9, 9)",
        Grouped((1024,), 512, (3, 3), groups=32): "32 groups",
    }.items():
        assert reason in why_not(form, here)
        assert bind_to_tiles(form, [], here) is None
    assert "direct" in why_not(Grouped((4,), 4, (3, 3), groups=2), replace(here, arithmetic="direct"))


HARNESS = """
#include "tiles_emulated.c"
void add(const uint16_t *a, const uint16_t *b, float *c, int rows, int depth) {
    configure(rows, rows, 2 * depth, 64);
    tile_load(0, c, 64);
    tile_load(4, a, 2 * depth);
    tile_load(6, b, 64);
    tile_add(0, 4, 6);
    tile_store(0, c, 64);
    release();
}
"""


def flushed(x):
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def tdpbf16ps(a, b, c):
    """What Intel's manual says, in numpy. a: `M K` of bfloat16 as float32; b: `K N`; c: `M N` in float32.

    A product of bfloat16 numbers and its sum with a float32 are exact in float64, but for bits far below the rounding.
    """
    a, b, c = flushed(a), flushed(b), flushed(c)
    sums = np.zeros((2, *c.shape), np.float32)
    with np.errstate(all="ignore"):
        for k in range(a.shape[1]):
            product = a[:, k : k + 1].astype(np.float64) * b[k : k + 1].astype(np.float64)
            sums[k % 2] = flushed((sums[k % 2].astype(np.float64) + product).astype(np.float32))
        return flushed(c + flushed(sums[0] + sums[1]))


def test_the_emulation_is_the_instruction(tmp_path):
    """Bit by bit: cancellation, overflow, subnormal numbers, infinities, NaN; rows and depths of every parity."""
    (tmp_path / "harness.c").write_text(HARNESS)
    command = [compiler(), "-O3", "-march=native", "-shared", "-fPIC", "-w", f"-I{RUNTIME}"]
    library = tmp_path / "harness.so"
    others = [str(RUNTIME / "scratch.c"), "-lm", "-lpthread"]
    subprocess.run([*command, str(tmp_path / "harness.c"), *others, "-o", str(library)], check=True)
    add, draw = ctypes.CDLL(str(library)).add, np.random.default_rng(0)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-39, 1.2e-38, 3e38, -3e38, 1.0], np.float32)
    for trial in range(200):
        rows, depth = int(draw.integers(1, 17)), 2 * int(draw.integers(1, 17))
        exponent = draw.uniform(-60, 60) if trial % 2 else 0.0
        a, b, c = (draw.standard_normal(size) * 2.0**e for size, e in
                   (((rows, depth), exponent), ((depth, 16), -exponent), ((rows, 16), 0)))  # fmt: skip
        if trial % 4 == 3:
            for x in (a, b, c):
                where = draw.random(x.shape) < 0.05
                x[where] = draw.choice(special, int(where.sum()))
        a, b = (torch.from_numpy(x).float().bfloat16() for x in (a, b))
        made, c = c.astype(np.float32), c.astype(np.float32)
        pairs = b.view(depth // 2, 2, 16).transpose(1, 2).contiguous()
        add(*(ctypes.c_void_p(x) for x in (a.data_ptr(), pairs.data_ptr(), made.ctypes.data)), rows, depth)
        want = tdpbf16ps(a.float().numpy(), b.float().numpy(), c)
        assert np.array_equal(made.view(np.int32)[~np.isnan(want)], want.view(np.int32)[~np.isnan(want)]), trial
        assert np.isnan(made[np.isnan(want)]).all()


def test_amx_is_compiled(tmp_path):
    """On any x86: the object has the instructions of 2×2 tiles, and this process can ask for them."""
    text = machine_code(RUNTIME / "tiles_amx.c", tmp_path, "-O3")
    skip_without_amx(text, "tdpbf16ps")
    assert text.count("tdpbf16ps") >= 4 + 2 + 2 + 1
    assert text.count("tilerelease") >= 1
    for instruction in ("ldtilecfg", "tileloadd", "tilestored", "tilezero"):
        assert instruction in text
