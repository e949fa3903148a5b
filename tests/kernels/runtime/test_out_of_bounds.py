"""Kernels touch nothing beside their maps, weights and results: each lies between pages that must not be touched."""

import itertools
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.bound import base, separable_strassen
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.runtime.huge_pages import ALIGN, HUGE, huge_page_buffer, pack_into_huge_pages
from leanconv.kernels.cpu.runtime.launch import Gates
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable, Stencil
from leanconv.ops.upsample import Upsample
from tests.cpus import with_cache
from tests.kernels.runtime.fences import PAGE, fenced
from tests.kernels.tolerance import DTYPES, weights_of

pytestmark = pytest.mark.usefixtures("halide")
AROUND = (1, 1, 1, 1)


def dense(dtype, *size):
    return torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)


class Fence:
    """Kernels to be run on fenced memory, all in one child process; what they make must be what they make elsewhere."""

    def __init__(self):
        self.cases = []

    def add(self, name, bound, maps, vectors=()):
        """`vectors`: what the kernel takes between maps and weights."""
        step = bound.prepared(*maps)
        given = [x for x in maps if x is not None] + list(vectors) + step.weights
        results = [torch.empty_strided(step.size, step.strides, dtype=step.dtype)] + [
            torch.empty(step.size[:2])
        ] * step.average
        step.loop.run(*[x.data_ptr() for x in (*given, *results)])
        self.cases += [
            (f"{name}, {side} a map", step, given, results, side == "behind") for side in ("behind", "before")
        ]

    def hold(self):
        at = mmap.mmap(-1, PAGE)  # shared with the child: the case that it is at
        child = os.fork()
        if not child:
            for index, (_, step, given, results, after) in enumerate(self.cases):
                at[:2] = index.to_bytes(2, "little")
                held = [fenced(x, after) for x in given]
                made = [fenced(torch.zeros_like(x), after) for x in results]
                step.loop.run(*[x.data_ptr() for x in (*held, *made)])
                if not all(torch.equal(a, b) for a, b in zip(made, results, strict=True)):
                    os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"status {status} at {self.cases[int.from_bytes(at[:2], 'little')][0]}"


def stencil(c, *size, **rest):
    return (Stencil(0, c, *size, **rest),)


def separables(c):
    """Forms of `c` channels: what stands first reads the map."""
    return {
        "1x1": Separable((c,), (), 7, bias=True, activation="relu", residual=True, average=True),
        "1x1 gate": Separable((c, 3), (), 21, gate=True, average=True),
        "3x3": Separable((c,), (stencil(c, (3, 3), padding=AROUND),), 9, bias=True, residual=True),
        "3x3 gate": Separable((c,), (stencil(c, (3, 3), padding=AROUND),), 9, gate=True),
        "3x3 unpadded": Separable((c,), (stencil(c, (3, 3)),), residual=True),
        "affine, 3x3": Separable((c,), (stencil(c, bias=True), stencil(c, (3, 3), padding=AROUND)), 9),
        "affine": Separable((c,), (stencil(c, bias=True, activation="relu"),), residual=True),
        "affine, 1x1": Separable((c,), (stencil(c, bias=True, activation="relu"),), 18, gate=True),
        "every other": Separable((c,), (stencil(c, stride=(2, 2), identity=True),), 9),
        "every other, alone": Separable((c,), (stencil(c, stride=(2, 2), identity=True),)),
        "side by side": Separable(
            (c + 2,), ((Stencil(0, c, identity=True), Stencil(c, 2, (1, 3), padding=(0, 0, 1, 1))),), 9, gate=True
        ),
        "side by side, alone": Separable(
            (c + 2,), ((Stencil(0, c, identity=True), Stencil(c, 2, (1, 3), padding=(0, 0, 1, 1))),)
        ),
        "7x7": Separable((c,), (stencil(c, (7, 7), padding=(3, 3, 3, 3)),), 9, gate=True),
        "two": Separable((c,), (stencil(c, (1, 5), padding=(0, 0, 2, 2)), stencil(c, (5, 1), padding=(2, 2, 0, 0)))),
    }


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c", "size"), [(5, (3, 5)), (19, (3, 103)), (24, (2, 2))])
def test_separable(c, size, dtype):
    fence = Fence()
    for name, form in separables(c).items():
        if min(form.size(*size)) < 1:
            continue
        inputs = [dense(dtype, 2, each, *size) for each in form.channels]
        residual = dense(dtype, 2, form.width, *form.size(*size)) if form.residual else None
        gate = torch.rand(2, form.middle) if form.gate else None
        fence.add(name, bind(form, weights_of(form)), [*inputs, residual, gate])
    fence.hold()


@torch.no_grad()
@pytest.mark.parametrize(("c", "o"), [(72, 90), (64, 96)])
@pytest.mark.parametrize("size", [(8, 5), (4, 6)])
def test_seven_products(c, o, size, monkeypatch):
    """Halves that are whole vectors or not, rows of even and odd numbers of pixels; alone, or behind a stencil."""
    for place in (base, separable_strassen):
        monkeypatch.setattr(place, "strassen_tile", lambda *sizes: Tile(3, 32, 16))
    fence = Fence()
    for name, stages in {"alone": (), "3x3": (stencil(c, (3, 3), padding=AROUND, bias=True),)}.items():
        form = Separable((c,), stages, o, bias=True, activation="relu", residual=True, average=True)
        inputs = [dense(torch.float32, 2, c, *size), dense(torch.float32, 2, o, *size), None]
        fence.add(f"{c} to {o}, {name}", bind(form, weights_of(form)), inputs)
    fence.hold()
    methods = {name: step.method for name, step, *_ in fence.cases}
    assert all(method == "strassen" for name, method in methods.items() if c % 32 == 0 or "alone" in name)


GROUPED = {
    "hetconv": Grouped((10,), 15, (3, 3), padding=AROUND, groups=5, pointwise=True, bias=True),
    "interleaved": Grouped((15,), 9, (3, 3), (2, 2), (1, 1), AROUND, 3, interleaved=True, residual=True, average=True),
    "dealt, 3x3": Grouped((15,), 27, (3, 3), padding=AROUND, groups=3, interleaved=True, pointwise=True, residual=True),
    "then 1x1": Grouped((7, 5), 12, (3, 3), padding=AROUND, groups=2, bias=True, project=19, residual=True),
    "dense": Grouped((3,), 13, (5, 2), (1, 2), (1, 3), (0, 2, 3, 1)),
    "image": Grouped((4,), 9, (3, 3), (2, 2), padding=AROUND, residual=True, average=True),
    "wide": Grouped((33,), 66, (1, 1), groups=3),
    "many": Grouped((140,), 28, (3, 3), groups=4, pointwise=True),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped(dtype):
    fence = Fence()
    for name, form in GROUPED.items():
        c, o = sum(form.channels), form.out_channels
        weights = [torch.randn(o, c // form.groups, *form.kernel)]
        weights += [torch.randn(o, c, 1, 1)] * form.pointwise + [torch.randn(o)] * form.bias
        weights += [torch.randn(form.project, o, 1, 1)] if form.project else []
        filtered = dtype == torch.float32 and form.groups > 1 and form.kernel == (3, 3) and form.stride == (1, 1)
        for method, size in itertools.product(("direct", "winograd")[: 1 + filtered], ((5, 4), (5, 17))):
            bound = bind(form, weights)
            bound.method = method
            residual = dense(dtype, 2, form.width, *form.size(*size)) if form.residual else None
            fence.add(f"{name}, {method}", bound, [*[dense(dtype, 2, each, *size) for each in form.channels], residual])
            if bound.planes:
                fence.add(f"{name}, in planes", bound, [torch.randn(2, c, *size).to(dtype), residual])
    fence.hold()


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c", "size"), [(5, (3, 5)), (19, (2, 30))])
def test_the_others(c, size, dtype):
    fence = Fence()
    maps = [dense(dtype, 2, c, *size), dense(dtype, 2, 3, *size)]
    up = bind(Upsample((c, 3), 5, bias=True, average=True), [torch.randn(c + 3, 5, 2, 2), torch.randn(5)])
    fence.add("upsample", up, maps)
    gated = bind(GatedSum((c, 3), c + 2, average=True), [torch.randn(c + 2, c + 3)])
    fence.add("gated sum", gated, [dense(dtype, 2, c + 2, *size), *maps], [torch.rand(2, 3, c + 2)])
    for form in (MaxPool(c, average=True), MaxPool(c, (3, 3), (2, 2), AROUND)):
        fence.add("max pool", bind(form, []), maps[:1])
    fence.hold()


@torch.no_grad()
@pytest.mark.parametrize("size", [(3, 5), (9, 30)])
def test_maps_that_are_fetched_from_memory(size):
    """Block by block, a row or so at a time; of a slice of channels that slice alone."""
    fence = Fence()
    for c, wide in ((5, 5), (19, 19), (3, 40)):
        x = dense(torch.float32, 2, wide, *size)[:, :c]
        square, row = stencil(c, (3, 3), padding=AROUND), (Stencil(0, 2, (1, 3), padding=(0, 0, 1, 1)),)
        beside = (*row, Stencil(2, c - 2, (3, 1), padding=(1, 1, 0, 0)))
        for name, stages in {"3x3": (square,), "two": (square, square), "side by side": (beside,)}.items():
            form = Separable((c,), stages, 9)
            fence.add(f"{name} of {c}", bind(form, weights_of(form), with_cache(10)), [x, None, None])
    assert all(step.loop._keep[2] for _, step, *_ in fence.cases)
    fence.hold()


@pytest.mark.parametrize("c", [1, 4, 7])
def test_gates_of_a_sum(c):
    """What the runtime reads and writes by itself: averages, the 1×1's weights, vectors."""
    n, o = 2, 5
    given = [torch.randn(size) for size in ((n, o), (n, c), (n, 3), (c + 3, o), (o,), (o,), (o,))]

    def made(first, one, other, weight, *vectors):
        out = torch.full((n, 3, o), torch.nan)
        out = fenced(out, True) if first is not given[0] else out
        Gates(first, [one, other], weight, vectors, out)()
        return out

    expected = made(*given)
    assert expected.isfinite().all()
    if not (child := os.fork()):
        same = [torch.equal(made(*[fenced(x, after) for x in given]), expected) for after in (True, False)]
        os._exit(0 if all(same) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_weights_lie_side_by_side_in_huge_pages():
    given = [torch.randn(9, 16), torch.randn(7), torch.empty(0), torch.randn(3, 5).bfloat16(), torch.randn(1 << 21)]
    made = [pack_into_huge_pages(x) for x in given]
    for x, y in zip(given, made, strict=True):
        assert torch.equal(x, y)
        assert y.dtype == x.dtype
        assert y.is_contiguous()
        assert y.data_ptr() % ALIGN == 0
    assert 0 < made[1].data_ptr() - made[0].data_ptr() < 2 * made[0].nbytes
    ends = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in made if x.numel())
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ends))
    assert made[-1].data_ptr() % HUGE == 0
    assert huge_page_buffer(5 * HUGE + 1).numel() == 5 * HUGE + 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps is Linux's")
def test_weights_are_given_back():
    def mapped():
        return int(
            next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmSize")).split()[1]
        )

    def many():
        return [pack_into_huge_pages(torch.ones(1 << 18)) for _ in range(20)]  # 20 MB, three chunks

    many()
    before = mapped()
    for _ in range(20):
        many()
    assert mapped() - before < 100_000, "kB"
