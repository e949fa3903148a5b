"""ShuffleNetV2: torchvision's network, DRConv's placement and its shared guide."""

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.models import build
from leanconv.nn import DRConv2d

UNITS = [(i, j) for i, n in enumerate((4, 8, 4)) for j in range(n)]


@pytest.mark.parametrize("width", ["0.5", "1.0", "1.5", "2.0"])
def test_torchvisions_network_counts_the_same(counts, width):
    theirs = getattr(pytest.importorskip("torchvision").models, f"shufflenet_v2_x{width.replace('.', '_')}")
    assert counts("shufflenet_v2", width=float(width)) == counts(theirs)


def test_it_computes_what_torchvisions_does_with_the_same_weights(same_as):
    theirs = pytest.importorskip("torchvision").models.shufflenet_v2_x0_5(num_classes=7)
    same_as(build("shufflenet_v2", num_classes=7), theirs)


def test_drconv_stands_at_two_layers_of_every_unit_which_share_a_guide():
    with torch.device("meta"):
        model = build("shufflenet_v2", conv="drconv(regions=4)")
    assert model.replaced == tuple(f"stages.{i}.{j}.branch.pointwise{k}" for i, j in UNITS for k in (1, 2))
    layers = [m for m in model.modules() if isinstance(m, DRConv2d)]
    assert {(m.regions, m.guide) for m in layers} == {(4, None)}
    for stage in model.stages:
        for unit in stage:
            assert unit.branch.guide.weight.shape == (4, unit.branch.pointwise1.in_channels, 1, 1)


def test_the_guide_chooses_the_kernel_of_both_layers():
    """With all regions' kernels but one zeroed, exactly the pixels of that region survive the first layer."""
    model = build("shufflenet_v2", conv="drconv(regions=2, experts=2)").eval()
    branch, x = model.stages[1][1].branch, torch.randn(1, 48, 6, 6)
    first = branch.pointwise1
    with torch.no_grad():
        first.routing_fc.weight.zero_()
        first.routing_fc.bias.copy_(torch.tensor([0.0, 0.0, -200.0, -200.0]))  # region 1: coefficients 0
        region = branch.guide(x).argmax(1)
        y = first(x, branch.guide(x))
    assert 0 < region.sum() < region.numel()
    assert torch.equal(y.abs().sum(1) == 0, region == 1)


def test_a_guide_of_its_own_where_the_string_says_so():
    with torch.device("meta"):
        model = build("shufflenet_v2", conv="drconv(guide='conv')")
        kept = build("shufflenet_v2", conv="drconv", keep="*.pointwise2 stages.0.*")
    assert all(unit.branch.guide is None for stage in model.stages for unit in stage)
    assert {name.split(".")[-1] for name in kept.replaced} == {"pointwise1"}
    assert kept.stages[0][0].branch.guide is None
    assert kept.stages[1][0].branch.guided == (True, False)


@pytest.mark.parametrize("conv", ["drconv", "odconv(kernels=2)", "fuseconv(variant='full')", "hetconv"])
def test_it_runs_and_learns(conv):
    model = build("shufflenet_v2", conv=conv, num_classes=3, se=4, small_input=True)
    assert isinstance(model.first.pool, nn.Identity)
    model(torch.randn(2, 3, 33, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_it_refuses():
    with pytest.raises(BadInput, match=r"width=0.75: one of 0.5, 1.0"):
        build("shufflenet_v2", width=0.75)
