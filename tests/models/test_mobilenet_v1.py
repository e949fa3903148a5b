"""MobileNetV1: the known sizes, what it computes, HetConv's pairs, FuSeConv's forms, what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from leanconv import registry
from leanconv.errors import BadInput, UnsupportedConv
from leanconv.models import build
from leanconv.nn import Operator
from leanconv.runs import load

FULL, HALF, FIFTY = "fuseconv(variant='full')", "fuseconv", "stages.[34].*"
BLOCKS = [f"stages.{i}.{j}" for i, n in enumerate((1, 2, 2, 6, 2)) for j in range(n)]


def test_timms_network_counts_the_same(counts):
    timm = pytest.importorskip("timm", reason="compares with timm's network")
    expected = (4_231_976, 568_740_352)
    assert counts("mobilenet_v1") == expected
    assert counts(lambda: timm.create_model("mobilenetv1_100")) == expected


def test_it_computes_what_timms_does_with_the_same_weights(same_as):
    timm = pytest.importorskip("timm", reason="compares with timm's network")
    same_as(build("mobilenet_v1", num_classes=7), timm.create_model("mobilenetv1_100", num_classes=7, act_layer="relu"))


@pytest.mark.parametrize(
    ("conv", "keep", "expected"),
    [
        ("conv", "", (4_231_976, 588_911_104)),
        (FULL, "", (7_366_600, 1_122_608_128)),
        (HALF, "", (4_202_216, 573_456_896)),
        (FULL, FIFTY, (4_356_296, 764_828_160)),
        (HALF, FIFTY, (4_228_328, 578_474_496)),
    ],
)
def test_fuseconvs_forms_have_the_specified_counts(counts, conv, keep, expected):
    assert counts("mobilenet_v1", "fuse", conv=conv, keep=keep) == expected


def test_the_cifar_networks_have_the_papers_counts(counts):
    """HetConv's table 4: 46.36M, 55.94M and 56.91M; squeeze-excite adds the sum of C²/4 over 13 layers."""
    plain = counts("mobilenet_v1_cifar", "macs_weights", side=32)
    assert plain[1] == 46_354_432
    pairs = counts("mobilenet_v1_cifar", "macs_weights", side=32, conv="hetconv(part=32)")
    with_se = counts("mobilenet_v1_cifar", "macs_weights", side=32, conv="hetconv(part=32)", se=8)
    assert pairs[1] == 55_945_216
    assert (with_se[0] - pairs[0], with_se[1] - pairs[1]) == (959_488, 959_488)


def test_a_pair_is_one_layer_with_one_norm():
    with torch.device("meta"):
        model = build("mobilenet_v1", conv="hetconv(part=8)")
    assert model.replaced == tuple(f"{block}.depthwise" for block in BLOCKS)
    block = model.stages[1][0]
    assert (block.depthwise.in_channels, block.depthwise.out_channels, block.depthwise.stride) == (64, 128, (2, 2))
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == 14


def test_an_operator_of_one_kind_leaves_the_other_standard():
    with torch.device("meta"):
        depthwise, pointwise = (build("mobilenet_v1", conv=conv) for conv in ("doconv", "topological"))
    assert pointwise.replaced == tuple(f"{block}.project" for block in BLOCKS)
    assert depthwise.replaced == tuple(f"{block}.depthwise" for block in BLOCKS)


def functional(state, x, first_stride):
    """The standard network from its tensors alone, in eval mode."""

    def norm(x, at):
        mean, var, gamma, beta = (
            state[f"{at}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * gamma + beta).clamp(min=0)

    x = norm(F.conv2d(x, state["first.conv.weight"], stride=first_stride, padding=1), "first.norm")
    for at in BLOCKS:
        weight, stride = state[f"{at}.depthwise.weight"], 2 if at.endswith(".0") and at != BLOCKS[0] else 1
        x = norm(F.conv2d(x, weight, stride=stride, padding=1, groups=len(weight)), f"{at}.norm1")
        x = norm(F.conv2d(x, state[f"{at}.project.weight"]), f"{at}.norm2")
    return x.mean((2, 3)) @ state["classifier.1.weight"].T + state["classifier.1.bias"]


@pytest.mark.parametrize(("name", "stride"), [("mobilenet_v1", 2), ("mobilenet_v1_cifar", 1)])
def test_it_computes_the_papers_network(name, stride):
    model = build(name, width=0.25, num_classes=3).double().eval()
    x = torch.randn(2, 3, 35, 41, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), functional(model.state_dict(), x, stride))


# XSepConv's rule leaves 3×3 layers alone; InceptionDW and the spatial bottleneck do not stride.
STRIDED = "stages.[1234].0.*"
KEEP = {"inception_dw": STRIDED, "spatial_bottleneck": STRIDED}


@pytest.mark.parametrize("conv", [name for name in registry.names() if name != "xsepconv"])
def test_every_operator_builds_runs_and_trains(conv):
    model = build("mobilenet_v1_cifar", width=0.25, conv=conv, keep=KEEP.get(conv, ""), se=4)
    assert bool(model.replaced) is (conv != "conv")
    stands = {n for n, m in model.named_modules() if isinstance(m, Operator) and n.startswith("stages")}
    assert set(model.replaced) <= stands
    y = model(torch.randn(2, 3, 32, 34))
    assert y.shape == (2, 10)
    y.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 17, 32)).isfinite().all()


def test_the_state_dict_keys_are_kept():
    model = build("mobilenet_v1_cifar", width=0.25, conv="hetconv(part=4)", keep="stages.0.*", se=8)
    keys = list(model.state_dict())
    assert (len(keys), sum(p.numel() for p in model.parameters())) == (130, 654_202)
    assert {
        "first.conv.weight",
        "stages.0.0.project.weight",
        "stages.4.1.depthwise.spatial",
        "stages.3.5.norm1.weight",
        "stages.2.0.se.up.weight",
        "classifier.1.bias",
    } <= set(keys)


def test_a_reference_builds_the_same():
    model = load("leanconv:mobilenet_v1_cifar?conv=hetconv(part=8)&width=0.5&se=8")
    assert model.extra_repr() == build("mobilenet_v1_cifar", conv="hetconv(part=8)", width=0.5, se=8).extra_repr()
    assert model.network == "mobilenet_v1_cifar"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"conv": "xsepconv"}, UnsupportedConv, "xsepconv replaces none of its layers: kernel_size=.3, 3. at stride"),
        ({"conv": "hetconv(part=64)"}, UnsupportedConv, "mobilenet_v1_cifar, stages.0.0.depthwise .32->64"),
        ({"conv": "inception_dw"}, UnsupportedConv, "stages.1.0.depthwise .*keep="),
        ({"keep": "stages.5.*", "conv": "hetconv"}, BadInput, "keep='stages.5"),
        ({"width": None}, BadInput, "width=None"),
        ({"se": "8"}, BadInput, "se='8'"),
        ({"se_bias": 0}, BadInput, "se_bias=0: True or False"),
        ({"dropout": 2}, BadInput, "dropout=2"),
    ],
)
def test_what_cannot_be_built_is_said(options, error, says):
    with pytest.raises(error, match=says), torch.device("meta"):
        build("mobilenet_v1_cifar", **options)
