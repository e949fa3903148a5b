"""MnasNet-B1: torchvision's and timm's network, FuSeConv's forms."""

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.models import build

FULL, HALF, FIFTY = "fuseconv(variant='full')", "fuseconv", "stages.0.* stages.[456].*"


def test_the_zoos_networks_count_the_same(counts):
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    expected = (4_383_312, 314_415_872)
    assert counts("mnasnet_b1") == counts(torchvision.models.mnasnet1_0) == expected
    assert counts(lambda: timm.create_model("mnasnet_100")) == expected


def test_it_computes_what_torchvisions_does_with_the_same_weights(same_as):
    theirs = pytest.importorskip("torchvision").models.mnasnet1_0(num_classes=7)
    same_as(build("mnasnet_b1", num_classes=7), theirs)


@pytest.mark.parametrize(
    ("conv", "keep", "expected"),
    [
        ("conv", "", (4_383_312, 325_329_152)),
        (FULL, "", (5_666_568, 440_595_968)),
        (HALF, "", (4_257_840, 304_179_968)),
        (FULL, FIFTY, (4_476_552, 361_540_544)),
        (HALF, FIFTY, (4_351_920, 312_120_320)),
    ],
)
def test_fuseconvs_forms_have_the_specified_counts(counts, conv, keep, expected):
    assert counts("mnasnet_b1", "fuse", conv=conv, keep=keep, act="relu6") == expected


def test_xsepconv_takes_the_5x5_layers_that_do_not_stride():
    with torch.device("meta"):
        model = build("mnasnet_b1", conv="xsepconv")
    kept = [f"stages.{i}.{j}.depthwise" for i, n in ((2, 3), (3, 3), (5, 4)) for j in range(1, n)]
    assert model.replaced == tuple(kept)


def test_it_runs_with_a_squeeze_excite_and_pairs():
    model = build("mnasnet_b1", width=0.35, conv="hetconv(part=4)", se=4, num_classes=3, small_input=True)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_it_refuses():
    with pytest.raises(BadInput, match="act='swish'"):
        build("mnasnet_b1", act="swish")
