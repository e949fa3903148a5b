"""MobileNetV2: its printed size, where an operator stands, FuSeConv's and HetConv's forms, what it refuses."""

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput, UnknownName, UnsupportedConv
from leanconv.measure.counting.count import count
from leanconv.models import build, names
from leanconv.nn import FuSeConv2d, HetConv2d, ODConv2d, SqueezeExcite
from leanconv.runs import load


def counts(convention="macs_trainable", side=224, **options):
    with torch.device("meta"):
        model = build("mobilenet_v2", **options).eval()
    found = count(model, torch.empty(1, 3, side, side, device="meta"), convention)
    return found.params, found.flops


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_zoos_network_counts_the_same(library):
    if library == "torchvision":
        theirs = pytest.importorskip("torchvision").models.mobilenet_v2
    else:
        timm = pytest.importorskip("timm")
        theirs = lambda: timm.create_model("mobilenetv2_100")  # noqa: E731
    with torch.device("meta"):
        other = theirs().eval()
    expected = count(other, torch.empty(1, 3, 224, 224, device="meta"), "macs_trainable")
    assert counts() == (expected.params, expected.flops) == (3_504_872, 300_774_272)


def test_it_computes_what_torchvisions_does_with_the_same_weights(same_as):
    theirs = pytest.importorskip("torchvision").models.mobilenet_v2(num_classes=7, width_mult=0.35)
    same_as(build("mobilenet_v2", num_classes=7, width=0.35), theirs)


def test_where_an_operator_stands():
    def stand(conv, **options):
        with torch.device("meta"):
            return set(build("mobilenet_v2", conv=conv, **options).replaced)

    spatial = {f"stages.{i}.{j}.depthwise" for i, n in enumerate([1, 2, 3, 4, 3, 3, 1]) for j in range(n)}
    expands = {name.replace("depthwise", "expand") for name in spatial} - {"stages.0.0.expand"}
    projects = {name.replace("depthwise", "project") for name in spatial}
    assert stand("conv") == set()
    assert stand("fuseconv") == spatial
    assert stand("fuseconv", keep="stages.0.* stages.[456].*") == {s for s in spatial if s[7] in "123"}
    assert stand("odconv(kernels=1)") == spatial | expands | projects | {"last.conv"}
    assert stand("topological") == expands | projects | {"last.conv"}
    assert stand("hetconv") == spatial  # a depthwise layer and its projection together


def test_an_operator_for_dense_layers_takes_a_pair():
    model = build("mobilenet_v2", width=0.35, conv="hetconv(part=4)", num_classes=3).eval()
    block = model.stages[1][0]
    assert isinstance(block.depthwise, HetConv2d)
    assert (block.depthwise.out_channels, block.depthwise.stride) == (8, (2, 2))
    assert [type(m) for m in (block.norm2, block.act2, block.project)] == [nn.Identity] * 3
    assert isinstance(block.norm3, nn.BatchNorm2d)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_fuseconvs_forms_have_the_printed_sizes():
    """The authors' counts hold a 1×1 of 1,088 parameters in the first block that is never called; ours does not."""
    half, full = "fuseconv", "fuseconv(variant='full')"
    assert counts("fuse", conv=full) == (4_462_024 - 1_088, 429_942_976)
    assert counts("fuse", conv=half) == (3_463_144 - 1_088, 300_319_552)
    fifty = "stages.0.* stages.[456].*"
    assert counts("fuse", conv=full, keep=fifty) == (3_611_432, 360_869_440)
    assert counts("fuse", conv=half, keep=fifty) == (3_492_200, 305_550_400)


def test_the_full_form_runs_and_learns():
    model = build("mobilenet_v2", width=0.35, conv="fuseconv(variant='full')", se=4, num_classes=3)
    block = model.stages[2][1]
    assert isinstance(block.depthwise, FuSeConv2d)
    assert block.project.in_channels == 2 * block.depthwise.in_channels == block.norm2.num_features
    assert isinstance(block.se, SqueezeExcite)
    assert block.se_first
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_squeeze_excite_in_every_block_and_small_inputs():
    dense, squeezed = counts(side=32)[0], counts(side=32, se=8)[0]
    inner = [32, 96, *[144] * 2, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]
    assert squeezed - dense == sum(2 * c * (c // 8) + c // 8 + c for c in inner)
    model = build("mobilenet_v2", small_input=True)
    strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strides == [2, 2, 2]


def test_a_reference_builds_it():
    model = load("leanconv:mobilenet_v2?conv=odconv(kernels=2)&width=0.35&num_classes=5")
    assert isinstance(model.stages[1][0].depthwise, ODConv2d)
    assert model.classifier[1].out_features == 5
    assert "mobilenet_v2" in names()
    assert "width=0.35" in repr(model)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"width": 0}, BadInput, "width=0"),
        ({"width": "wide"}, BadInput, "width='wide'"),
        ({"num_classes": 0}, BadInput, "num_classes=0"),
        ({"se": -1}, BadInput, "se=-1"),
        ({"dropout": 1}, BadInput, "dropout=1"),
        ({"small_input": 1}, BadInput, "small_input=1"),
        ({"conv": 3}, BadInput, "conv=3"),
        ({"conv": "odcon"}, UnknownName, "odconv"),
        ({"conv": "odconv(kernels=0)"}, UnsupportedConv, "stages.0.0.depthwise .*kernels=0"),
        ({"conv": "xsepconv"}, UnsupportedConv, "k >= 5"),
        ({"conv": "inception_dw"}, UnsupportedConv, "stages.1.0.depthwise"),
        ({"keep": "stage9"}, BadInput, "keep='stage9'"),
        ({"kernels": 4}, UnknownName, "kernels"),
    ],
)
def test_what_it_refuses(options, error, says):
    with torch.device("meta"), pytest.raises(error, match=says):
        build("mobilenet_v2", **options)


def test_another_number_of_channels_is_refused():
    with pytest.raises(BadInput, match="C=3, got"):
        build("mobilenet_v2", width=0.35)(torch.randn(1, 1, 32, 32))
