"""ResNets: torchvision's where they are standard, the papers' counts, which layers are replaced, what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv import registry
from leanconv.errors import BadInput, UnknownName, UnsupportedConv
from leanconv.measure.counting.count import count
from leanconv.models import build, names
from leanconv.nn import HetConv2d, Operator
from leanconv.runs import load

DENSE = [name for name in registry.names() if "dense" in registry.get(name).replaces]
# The strided layers of ResNet-20: `spatial_bottleneck` is defined at stride 1 only.
KEEP = {"spatial_bottleneck": "layer2.0.conv1 layer3.0.conv1"}


def meta(name, **options):
    with torch.device("meta"):
        return build(name, **options).eval()


def numbers(name, convention="macs_weights", side=224, **options):
    found = count(meta(name, **options), torch.empty(1, 3, side, side, device="meta"), convention)
    return found.params, found.flops


def replaced(model) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, Operator)]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_the_standard_network_is_torchvisions(name):
    torchvision = pytest.importorskip("torchvision", reason="compares with torchvision's network")
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().eval()
    ours = meta(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    x = torch.empty(1, 3, 224, 224, device="meta")
    assert count(ours, x, "macs").flops == count(theirs, x, "macs").flops


def test_it_computes_what_torchvisions_computes():
    torchvision = pytest.importorskip("torchvision", reason="compares with torchvision's network")
    theirs = torchvision.models.resnet50(num_classes=7).eval()
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    ours = build("resnet50", num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 70, 45)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def functional_resnet20(state, x):
    """The CIFAR network with option-A shortcuts from its tensors alone, in eval mode."""

    def norm(x, at):
        mean, var, gamma, beta = (
            state[f"{at}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    x = norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(3):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").clamp(min=0)
            y = norm(F.conv2d(y, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if stride == 2:
                x = F.avg_pool2d(x, 1, 2)  # every second pixel
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = (x + y).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("size", [(32, 32), (27, 19)])
def test_resnet20_is_the_papers(size):
    model = build("resnet20_cifar", width=0.25).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), functional_resnet20(model.state_dict(), x))


def test_the_parameters_are_the_known_ones():
    """He et al., table 6: 0.27M and 0.85M; the rest as every zoo prints them."""
    known = {"resnet20_cifar": 269_722, "resnet56_cifar": 853_018, "resnet18": 11_689_512, "resnet34": 21_797_672}
    for name, params in known.items():
        assert sum(p.numel() for p in meta(name).parameters()) == params


def test_the_odconv_networks_have_the_papers_size():
    for name, kernels, params in (
        ("resnet18", 1, 11_943_944),
        ("resnet18", 4, 44_901_640),
        ("resnet50", 1, 28_635_112),
        ("resnet50", 4, 90_670_888),
        ("resnet101", 2, 90_441_623),
    ):
        model = meta(name, conv=f"odconv(kernels={kernels})", stride_on="1x1")
        assert sum(p.numel() for p in model.parameters()) == params


def test_the_spconv_networks_have_the_papers_size():
    for alpha, params in ((0.5, 18_345_448), (0.25, 16_930_792), (0.125, 16_223_464)):
        model = meta("resnet50", conv=f"spconv(alpha={alpha})")
        assert len(replaced(model)) == 16
        # The paper's plain 1x1 has a bias, which a drop-in before a BatchNorm has not.
        biases = 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512
        assert sum(p.numel() for p in model.parameters()) + biases == params


def test_the_stride_moves_to_the_first_1x1():
    assert numbers("resnet50") == (25_502_912, 4_089_184_256)
    assert numbers("resnet50", stride_on="1x1")[1] == 3_857_973_248
    assert numbers("resnet101", stride_on="1x1")[1] == 7_570_194_432


def test_which_layers_are_replaced():
    basic = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
    assert replaced(meta("resnet20_cifar", conv="hetconv(part=4)")) == basic
    assert replaced(meta("resnet20_cifar", conv="hetconv", keep="layer1.* *.conv2")) == [
        n for n in basic if n[5] != "1" and n.endswith("conv1")
    ]
    bottleneck = replaced(meta("resnet50", conv="hetconv(part=4)"))
    assert len(bottleneck) == 16
    assert all(n.endswith("conv2") for n in bottleneck)
    assert len(replaced(meta("resnet50", conv="odconv"))) == 48
    assert len(replaced(meta("resnet50", conv="odconv", replace="3x3"))) == 16
    assert replaced(meta("resnet18")) == []


def test_the_operator_can_follow_the_layers_channels():
    model = meta("resnet20_cifar", conv="hetconv(part={c})")
    parts = [m.part for m in model.modules() if isinstance(m, HetConv2d)]
    assert parts == [16] * 7 + [32] * 6 + [64] * 5


def test_squeeze_excite_stands_once_in_a_block_before_the_addition():
    """Two bias-free maps, 2·C²/8 numbers each, C of 27 blocks; the paper prints the MACs of exactly these."""
    plain, with_se = numbers("resnet56_cifar", side=32), numbers("resnet56_cifar", side=32, se=8)
    more = sum(9 * 2 * c * c // 8 for c in (16, 32, 64))
    assert (with_se[0] - plain[0], with_se[1] - plain[1]) == (more, more)
    block = build("resnet20_cifar", se=4).eval().layer1[0]
    nn.init.constant_(block.se.up.weight, -1e4)
    nn.init.ones_(block.se.down.weight)
    nn.init.ones_(block.bn2.bias)
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), x)  # the gate shut: only the shortcut is left
    biased = meta("resnet20_cifar", se=4, se_bias=True)
    assert biased.layer3[0].se.up.bias.shape == (64,)


@pytest.mark.parametrize("conv", DENSE)
def test_every_operator_builds_runs_and_trains(conv):
    model = build("resnet20_cifar", width=0.25, conv=conv, keep=KEEP.get(conv, ""), num_classes=5)
    y = model(torch.randn(2, 3, 17, 14))
    assert y.shape == (2, 5)
    y.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        assert twin(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_the_state_dict_keys_are_kept():
    keys = list(build("resnet20_cifar", width=0.25, conv="hetconv(part=2)", se=4).state_dict())
    assert len(keys) == 152
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.spatial",
        "layer1.0.conv1.pointwise",
        "layer3.2.bn2.weight",
        "layer2.1.se.down.weight",
        "fc.bias",
    } <= set(keys)
    assert {k.split(".")[0] for k in keys} == {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}
    dense = build("resnet20_cifar", width=0.25, se=4)
    model = build("resnet20_cifar", width=0.25, conv="hetconv(part=2)", se=4)
    model.load_state_dict(dense.state_dict())  # HetConv takes a dense `weight`


def test_a_reference_builds_the_same():
    text = "leanconv:resnet20_cifar?conv=hetconv(part={c})&width=0.5&se=8&num_classes=100"
    assert (
        load(text).extra_repr()
        == build("resnet20_cifar", conv="hetconv(part={c})", width=0.5, se=8, num_classes=100).extra_repr()
    )
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnet20_cifar", "resnet56_cifar"} <= set(names())


def test_fakes_compile_and_channels_last():
    model = build("resnet20_cifar", width=0.25, conv="hetconv(part=2)", se=4).eval()
    x = torch.randn(2, 3, 12, 16)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), y)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"conv": "hetconv(part=3)"}, UnsupportedConv, r"resnet20_cifar, layer1.0.conv1 .16->16 3x3 p1.*keep='layer1"),
        ({"conv": "xsepconv"}, UnsupportedConv, "xsepconv replaces none of its layers: it replaces depthwise layers"),
        ({"conv": "hetcon"}, UnknownName, "did you mean 'hetconv'"),
        ({"conv": "hetconv(part=2+2)"}, BadInput, "plain value"),
        ({"conv": "splconv(alpha='a')"}, BadInput, "splconv: alpha='a' must be a number"),
        ({"conv": 3}, BadInput, "conv=3: a text, like hetconv"),
        ({"keep": 3}, BadInput, "keep=3: a text"),
        ({"conv": "hetconv", "keep": "layer4.*"}, BadInput, "keep='layer4.*' matches no replaced layer"),
        ({"width": 0}, BadInput, "width=0: a factor above 0"),
        ({"width": "2"}, BadInput, "width='2'"),
        ({"width": 1e9}, BadInput, "up to 65536 channels"),
        ({"num_classes": 0}, BadInput, "num_classes=0: a whole number"),
        ({"in_channels": 1.5}, BadInput, "in_channels=1.5"),
        ({"se": -1}, BadInput, "se=-1: a whole number"),
        ({"se": True}, BadInput, "se=True: a whole number"),
        ({"conv_bias": 1}, BadInput, "conv_bias=1: True or False"),
        ({"shortcut": "zeropad"}, BadInput, "did you mean 'zero_pad'"),
        ({"stride_on": "1"}, BadInput, "stride_on='1'"),
        ({"replace": "5x5"}, BadInput, "one of all, 3x3"),
        ({"wdth": 1}, UnknownName, "did you mean 'width'"),
    ],
)
def test_what_cannot_be_built_is_said(options, error, says):
    with pytest.raises(error, match=says):
        meta("resnet20_cifar", **options)


def test_another_image_is_refused():
    model = build("resnet20_cifar", width=0.25)
    with pytest.raises(BadInput, match="resnet20_cifar takes N C H W with C=3, got"):
        model(torch.randn(1, 1, 32, 32))


def test_a_bias_of_the_3x3_layers_alone():
    with torch.device("meta"):
        model = build("resnet50", conv="spconv", conv_bias="3x3")
    biased = [name for name, p in model.named_parameters() if name.endswith("bias") and ".bn" not in name]
    assert [name for name in biased if name.startswith("layer") and ".conv2." in name and "norm" not in name]
    assert not [name for name in biased if ".conv1." in name or ".conv3." in name or name.startswith("conv1")]
