"""int8 programs of the fused engine: the loss keeps its limit, and blocks that hurt or gain nothing stay float32."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.deploy.int8 import Calibration
from leanconv.engine import optimize, workbench
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.integer import Integer
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.lowering import autotune
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, IN_TORCH, KERNEL, TILES, Implementation
from leanconv.engine.fused.quantization.speed import Times, faster_in_integers
from leanconv.engine.fused.stored import open_program
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.kernels import Target, backend
from leanconv.kernels.cpu.compilation.build import compiler
from tests.cpus import SAPPHIRE_RAPIDS, ZEN4
from tests.engine.fused.passes.test_quantization import quantizer_of
from tests.engine.fused.test_candidate import randomised


@pytest.fixture(autouse=True)
def quick_choice(monkeypatch):
    """Nothing is measured, so all that can be is in int8; its reference counts as a kernel."""
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    monkeypatch.setitem(
        IMPLEMENTATIONS, Block, [each for each in IMPLEMENTATIONS[Block] if each.name in ("aten", "kernel")]
    )
    monkeypatch.setitem(IMPLEMENTATIONS, Integer, [Implementation("kernel", IN_TORCH.make), IN_TORCH])


def pictures(*shape, count=12, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def prepared(model, x, data, **options):
    calibration = Calibration(model, x, data, **options)
    return FUSED.prepare(Workbench(model, (x,), {}, torch.get_num_threads(), calibration=calibration), torch.int8)


@pytest.mark.skipif(bool(backend().why_not()) or not compiler(), reason=backend().why_not() or "no C compiler")
@torch.no_grad()
@pytest.mark.parametrize("conv", ["splconv", "conv"])
def test_products_on_tiles_give_the_bits_of_vectors(conv, monkeypatch):
    """On a processor with a matrix unit, emulated where there is none; also sizes that were not measured."""
    torch.manual_seed(0)
    model, x = randomised(lc.load(f"leanconv:unet?base=16&levels=1&conv={conv}")), torch.rand(2, 3, 16, 24)

    def made(*names, cpu=SAPPHIRE_RAPIDS):
        monkeypatch.setitem(IMPLEMENTATIONS, Integer, [IN_TORCH, KERNEL, TILES])
        for kind in (Block, GatedSum, Upsample):  # what stays float32 is computed by one implementation
            monkeypatch.setitem(IMPLEMENTATIONS, kind, [each for each in IMPLEMENTATIONS[kind] if each.name == "aten"])
        monkeypatch.setattr(autotune, "PREFERRED", names)
        monkeypatch.setattr(autotune, "_MEASURED", {})
        calibration = Calibration(model, x, pictures(3, 16, 24), max_loss=0.1)
        form = FUSED.prepare(Workbench(model, (x,), {}, 1, Target(cpu), calibration=calibration), torch.int8)
        return form, [row.chosen for row in form.blocks.rows].count("tiles")

    (vectors, none), (tiles, on_tiles) = made("kernel"), made("tiles", "kernel")
    assert none == made("tiles", "kernel", cpu=ZEN4)[1] == 0
    assert on_tiles >= 6, str(tiles.blocks)
    for size in (x.shape, x.shape, (1, 3, 34, 20), (1, 3, 34, 20)):
        x = torch.rand(size)
        assert torch.equal(tiles(x), vectors(x))


def unlike(a, b):
    return float((a - b).double().square().sum() / (b - b.mean()).double().square().sum())


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return randomised(lc.load("leanconv:unet?base=8&levels=1&conv=splconv"))


@torch.no_grad()
def test_a_network_in_any_size(unet):
    form = prepared(unet, torch.rand(1, 3, 16, 24), pictures(3, 16, 24), max_loss=0.02)
    assert form.blocks.int8.startswith("int8: 12 of 12 blocks, relative squared error"), str(form.blocks)
    assert form.blocks.int8 in str(form.blocks)
    assert form.blocks.in_float32 == {}
    for size in ((1, 3, 16, 24), (1, 3, 16, 24), (3, 3, 16, 24), (1, 3, 32, 12), (5, 3, 8, 8)):
        x = torch.rand(size)
        y = form(x)
        assert y.dtype == torch.float32
        assert y.shape == unet(x).shape
        assert 0 < unlike(y, unet(x)) < 0.05
        assert torch.equal(form(x), y)


@torch.no_grad()
@pytest.mark.parametrize("batch", [2, 1])
def test_it_can_be_stored(unet, batch, tmp_path):
    x = torch.rand(batch, 3, 16, 24)
    form = prepared(unet, x, pictures(3, 16, 24), max_loss=0.02)
    form.store(tmp_path)
    again = open_program(tmp_path, x.shape)
    for size in ((batch, 3, 16, 24), (3, 3, 12, 20)):
        x = torch.rand(size)
        assert torch.equal(again(x), form(x))


class OneLargeChannel(nn.Module):
    """The first layer has one channel that is much larger than the others, and no more important."""

    def __init__(self, times=3000.0, c=8):
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((3, c), (c, c), (c, c))
        )
        self.last = nn.Conv2d(c, 3, 1, bias=False)
        with torch.no_grad():
            self.first.weight[0] *= times
            self.second.weight[:, 0] /= times

    def forward(self, x):
        return self.last(self.third(self.second(self.first(x).relu()).relu()).relu())


def test_blocks_that_hurt_stay_in_float32_and_are_listed():
    torch.manual_seed(0)
    model, x = OneLargeChannel().eval(), torch.rand(1, 3, 16, 16)
    form = prepared(model, x, pictures(3, 16, 16), max_loss=2e-3)
    kept = form.blocks.in_float32
    # The second block reads that map in float32, so the first one gives it in float32.
    (block, why), *others = kept.items()
    assert not others
    assert "[8->8 3x3+relu]" in block
    assert "(relu_1)" in block
    assert why.startswith("int8 in it alone is a relative squared error of")
    assert "int8: 3 of 4 blocks" in form.blocks.note
    assert {row["chosen"] for row in form.blocks.to_dict() if "int8" in row["refused"]} == {"float32"}
    with torch.no_grad():
        assert unlike(form(x), model(x)) < 4e-3


def test_the_metric_decides_where_there_is_one():
    torch.manual_seed(0)
    model, x = OneLargeChannel().eval(), torch.rand(1, 3, 16, 16)
    data = pictures(3, 16, 16)
    with torch.no_grad():
        answers = model(data)
    form = prepared(model, x, data, metric=lambda form: -unlike(form(data), answers), max_loss=1e-3)
    assert len(form.blocks.in_float32) == 1
    form = prepared(model, x, data, metric=lambda form: 1.0, max_loss=1e-3)
    assert form.blocks.in_float32 == {}


def test_a_limit_that_no_block_keeps():
    torch.manual_seed(0)
    model, x = OneLargeChannel().eval(), torch.rand(1, 3, 16, 16)
    with pytest.raises(BadInput, match=r"within max_loss=1e-09: the least harmful alone is"):
        prepared(model, x, pictures(3, 16, 16), max_loss=1e-9)


def test_without_kernels_nothing_is_faster(unet, monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, Integer, [IN_TORCH])
    with pytest.raises(BadInput, match="no block of the model is faster in int8"):
        prepared(unet, torch.rand(1, 3, 16, 24), pictures(3, 16, 24))


def test_without_data(unet):
    bench = Workbench(unet, (torch.rand(1, 3, 16, 24),), {}, 1)
    with pytest.raises(BadInput, match="calibration data"):
        FUSED.prepare(bench, torch.int8)
    half = copy.deepcopy(unet).to(torch.bfloat16)
    bench = Workbench(half, (torch.rand(1, 3, 16, 24).to(torch.bfloat16),), {}, 1)
    assert "float32, not bfloat16" in FUSED.why_not(bench, torch.int8)


def test_one_bright_picture_does_not_cost_the_others(unet):
    x, data = torch.rand(1, 3, 16, 24), pictures(3, 16, 24, count=16)
    data[4] *= 300
    form = prepared(unet, x, data, max_loss=1e6)
    with torch.no_grad():
        assert unlike(form(data[:1]), unet(data[:1])) < 0.05


def chain(count=4):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, padding=1), nn.ReLU()) for i in range(count)]
    return quantizer_of(nn.Sequential(*layers), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("wide", "narrow", "conversion", "chosen"),
    [
        ([4, 4, 4, 4], [1, 1, 1, 1], 0.1, [0, 1, 2, 3]),
        ([1, 1, 1, 1], [4, 4, 4, 4], 0.0, []),
        ([1, 4, 4, 1], [4, 1, 1, 4], 0.1, [1, 2]),
        ([4, 1, 1, 4], [1, 1.5, 1.5, 1], 2.0, [0, 1, 2, 3]),  # two conversions cost more than two slower blocks
        ([4, 4, 4, 4], [3, 3, 3, 3], 99.0, []),  # the picture's conversion costs more than all gain
        ([4, 4, 4, 4], [math.inf, 1, 1, math.inf], 0.1, [1, 2]),
        ([4, 4, 4, 4], [math.inf] * 4, 0.0, []),
    ],
)
def test_which_blocks_are_faster_with_their_conversions(wide, narrow, conversion, chosen):
    quantizer = chain()
    nodes = quantizer.nodes
    numbers = nodes[0].numbers
    times = Times(dict(zip(nodes, wide, strict=True)), dict(zip(nodes, narrow, strict=True)), conversion / numbers)
    assert faster_in_integers(quantizer, times, {*nodes}) == {nodes[i] for i in chosen}
    assert faster_in_integers(quantizer, times, set()) == set()


@pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels")
@pytest.mark.parametrize("threads", [1, 2])
def test_with_kernels_and_measured_times(unet, threads, monkeypatch, tmp_path):
    """Each block is in the type that was faster here, and the limit is kept. It can be stored and opened."""
    monkeypatch.setattr(workbench, "MEASURING_S", 3.0)
    monkeypatch.setitem(IMPLEMENTATIONS, Integer, [IN_TORCH, KERNEL])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.rand(1, 3, 64, 64)
        try:
            form = prepared(unet, x, pictures(3, 64, 64), max_loss=0.05)
        except BadInput as error:  # a machine whose float32 is faster
            assert "faster in int8" in str(error)  # noqa: PT017
            return
        chosen = {row.chosen for row in form.blocks.rows if row.block.startswith("int8")}
        assert chosen == {"kernel"}
        form.store(tmp_path)
        again = open_program(tmp_path, x.shape)
        with torch.no_grad():
            for size in ((1, 3, 64, 64), (3, 3, 24, 40), (0, 3, 24, 40)):
                x = torch.rand(size)
                assert torch.equal(form(x), again(x))
                assert form(x).shape == unet(x).shape
                assert not len(x) or unlike(form(x), unet(x)) < 0.1
    finally:
        torch.set_num_threads(before)


def test_changed_weights_are_an_error(unet, always):
    """The forms keep the weights that they were made of, in int8 as in every other type."""
    model, x = copy.deepcopy(unet), torch.rand(1, 3, 16, 24)
    fast = optimize(
        model, x, dtype=torch.int8, data=pictures(3, 16, 24), engines=("fused",), budget_s=240, max_loss=0.05
    )
    assert fast.choices["fused int8"].error <= 0.05
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(BadInput, match="weights were changed after optimize"):
        fast(torch.rand(2, 3, 16, 24))


class Resized(nn.Module):
    """Between integer blocks an operator of PyTorch whose result has the sizes of the input."""

    def __init__(self, c=8):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, c, 3, 2, 1), nn.Conv2d(c + 3, c, 3, padding=1)
        self.last = nn.Conv2d(c, 2, 1)

    def forward(self, x):
        y = F.interpolate(self.first(x).relu(), size=x.shape[2:], mode="bilinear")
        return self.last(self.second(torch.cat([y, x], 1)).relu())


@pytest.mark.slow
@torch.no_grad()
def test_sizes_that_the_network_computes():
    torch.manual_seed(0)
    model, x = Resized().eval(), torch.randn(1, 3, 18, 14)
    form = prepared(model, x, pictures(3, 18, 14))
    assert form.blocks.int8.startswith("int8: 3 of 3 blocks")
    for size in ((1, 3, 18, 14), (1, 3, 18, 14), (2, 3, 18, 14), (3, 3, 11, 23), (1, 3, 8, 8)):
        x = torch.randn(size)
        assert unlike(form(x), model(x)) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", ["kernel", "merged", "tiles"])
def test_every_kernel_of_integers_counts_as_one(name, monkeypatch):
    """Before, a block whose merged groups were the fastest counted as having no int8 kernel."""
    monkeypatch.setitem(IMPLEMENTATIONS, Integer, [Implementation(name, IN_TORCH.make), IN_TORCH])
    monkeypatch.setattr(autotune, "PREFERRED", (name,))
    monkeypatch.setattr(autotune, "_MEASURED", {})
    torch.manual_seed(0)
    model, x = randomised(lc.load("leanconv:unet?base=4&levels=1&conv=hetconv(part=2)")), torch.rand(1, 3, 16, 16)
    form = prepared(model, x, pictures(3, 16, 16), max_loss=0.5)
    assert [row.chosen for row in form.blocks.rows].count(name) >= 4
