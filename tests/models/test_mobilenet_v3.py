"""MobileNetV3: torchvision's network, XSepConv's rule, FuSeConv's forms."""

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.models import build
from leanconv.nn import SqueezeExcite, XSepConv2d
from leanconv.runs import load

FUSE = {"last": 1280, "se_multiple": 1, "se_bias": False, "expand_always": True}
FULL, HALF = "fuseconv(variant='full')", "fuseconv"
# What FuSeConv's 50 % variants leave: all but blocks 3, 5, 6, 7, 8 (Small) and 2 to 8 (Large), counted from 1.
KEEP50 = {"small": "stages.0.[01389].* stages.0.10.*", "large": "stages.0.0.* stages.0.[89].* stages.0.1?.*"}


@pytest.mark.parametrize(("size", "macs"), [("small", 56_510_400), ("large", 216_589_760)])
def test_torchvisions_network_counts_the_same(counts, size, macs):
    theirs = getattr(pytest.importorskip("torchvision").models, f"mobilenet_v3_{size}")
    assert counts(f"mobilenet_v3_{size}") == counts(theirs)
    assert counts(f"mobilenet_v3_{size}")[1] == macs


def test_timms_network_has_the_same_size(counts):
    timm = pytest.importorskip("timm")
    assert counts("mobilenet_v3_large") == counts(lambda: timm.create_model("mobilenetv3_large_100"))


@pytest.mark.parametrize("size", ["small", "large"])
def test_it_computes_what_torchvisions_does_with_the_same_weights(same_as, size):
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, f"mobilenet_v3_{size}")(num_classes=7, width_mult=0.5)
    ours = build(f"mobilenet_v3_{size}", num_classes=7, width=0.5, last=theirs.classifier[0].out_features)
    same_as(ours, theirs)


def test_xsepconv_stands_where_its_paper_puts_it(counts):
    """In the six stride-1 5×5 layers of Small, numbered; the specified counts have no bias before the classifier."""
    with torch.device("meta"):
        model = build("mobilenet_v3_small", conv="xsepconv")
    layers = [m for m in model.modules() if isinstance(m, XSepConv2d)]
    assert model.replaced == tuple(f"stages.0.{i}.depthwise" for i in (4, 5, 6, 7, 9, 10))
    assert [m.in_channels for m in layers] == [240, 240, 120, 144, 576, 576]
    assert [m.layer_index for m in layers] == list(range(6))
    assert {m.act for m in layers} == {"hardswish"}
    cifar = {"small_input": True, "num_classes": 10, "se_multiple": 1, "se_bias": False, "side": 32}
    assert counts("mobilenet_v3_small", **cifar) == (1_518_594 + 1024, 17_501_728)
    assert counts("mobilenet_v3_small", conv="xsepconv", **cifar) == (1_505_322 + 1024, 16_775_200)


@pytest.mark.parametrize(
    ("size", "conv", "keep", "expected"),
    [
        ("small", "conv", "", (2_938_368, 66_858_208)),
        ("small", FULL, "", (4_446_056, 83_963_520)),
        ("small", HALF, "", (2_891_712, 61_100_512)),
        ("small", FULL, KEEP50["small"], (3_188_096, 73_743_008)),
        ("small", HALF, KEEP50["small"], (2_922_960, 63_527_776)),
        ("large", "conv", "", (5_476_416, 238_247_712)),
        ("large", FULL, "", (10_577_064, 322_393_152)),
        ("large", HALF, "", (5_405_664, 224_747_232)),
        ("large", FULL, KEEP50["large"], (5_573_704, 263_529_376)),
        ("large", HALF, KEEP50["large"], (5_466_720, 230_279_136)),
    ],
)
def test_fuseconvs_forms_have_the_specified_counts(counts, size, conv, keep, expected):
    assert counts(f"mobilenet_v3_{size}", "fuse", conv=conv, keep=keep, **FUSE) == expected


def test_the_squeeze_excite_stands_before_the_activation_beside_fuseconv_and_xsepconv():
    for conv, first in (("conv", False), ("odconv(kernels=1)", False), ("fuseconv", True), ("xsepconv", True)):
        with torch.device("meta"):
            model = build("mobilenet_v3_small", conv=conv)
        block = model.stages[0][4]
        assert isinstance(block.se, SqueezeExcite)
        assert block.se_first is first
    assert model.stages[0][3].se_first is False  # a plain 5×5 that strides


def test_without_squeeze_excite():
    with torch.device("meta"):
        model = build("mobilenet_v3_small", se=0)
    assert not any(isinstance(m, SqueezeExcite) for m in model.modules())
    assert [b.se_first for b in model.stages[0]] == [False] * 11


def test_a_reference_builds_it_and_it_learns():
    model = load("leanconv:mobilenet_v3_small?conv=xsepconv(pad_policy='channel')&small_input=true&num_classes=4")
    strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strides == [2, 2, 2]
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"last": -1}, "last=-1"), ({"se": True}, "se=True"), ({"se_multiple": 0}, "se_multiple=0"),
     ({"expand_always": 2}, "expand_always=2"), ({"dropout": -0.1}, "dropout=-0.1")],
)  # fmt: skip
def test_what_it_refuses(options, says):
    with torch.device("meta"), pytest.raises(BadInput, match=says):
        build("mobilenet_v3_large", **options)
