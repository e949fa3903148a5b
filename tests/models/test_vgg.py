"""VGG-16: the known sizes, which layers are replaced, what it computes, what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv import registry
from leanconv.errors import BadInput, UnknownName, UnsupportedConv
from leanconv.measure.counting.count import count
from leanconv.models import build
from leanconv.nn import HetConv2d, Operator
from leanconv.runs import load

DENSE = [name for name in registry.names() if "dense" in registry.get(name).replaces]
LAYERS = [f"stage{s}.conv{c}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)]


def meta(name="vgg16_cifar", **options):
    with torch.device("meta"):
        return build(name, **options).eval()


def params(model) -> int:
    return sum(p.numel() for p in model.parameters())


def replaced(model) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, Operator)]


def test_the_cifar_network_has_the_known_size():
    """15,001,418 in Keras, which counts the running statistics; 14,991,946 of them are trained."""
    model = meta()
    statistics = sum(b.numel() for n, b in model.named_buffers() if "running" in n)
    assert (params(model), params(model) + statistics) == (14_991_946, 15_001_418)


def test_the_imagenet_network_is_torchvisions():
    torchvision = pytest.importorskip("torchvision", reason="compares with torchvision's network")
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn().eval()
    ours, x = meta("vgg16"), torch.empty(1, 3, 224, 224, device="meta")
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    assert count(ours, x, "macs").flops == count(theirs, x, "macs").flops


def test_it_computes_what_torchvisions_computes():
    torchvision = pytest.importorskip("torchvision", reason="compares with torchvision's network")
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True).eval()
    ours = nn.Sequential(*(stage for name, stage in build("vgg16_cifar").named_children() if name != "head")).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 37, 40)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def test_the_cifar_head_is_two_linear_layers_with_a_norm_between():
    model = build("vgg16_cifar", width=0.125, num_classes=3).double().eval()
    head, state = model.head, model.head.state_dict()
    head.norm1.running_mean.normal_()
    y = torch.randn(2, 64, 1, 1, dtype=torch.float64)
    z = F.batch_norm(
        y.flatten(1) @ state["fc1.weight"].T + state["fc1.bias"],
        state["norm1.running_mean"],
        state["norm1.running_var"],
        state["norm1.weight"],
        state["norm1.bias"],
    )
    expected = z.clamp(min=0) @ state["fc2.weight"].T + state["fc2.bias"]
    with torch.no_grad():
        torch.testing.assert_close(head(y), expected)


def test_every_convolution_but_the_first_is_replaced():
    assert replaced(meta(conv="hetconv")) == LAYERS[1:]
    assert replaced(meta("vgg16", conv="hetconv")) == LAYERS[1:]
    assert replaced(meta(conv="hetconv", keep="stage1.* stage5.conv?")) == LAYERS[2:10]
    assert replaced(meta()) == []


def test_one_kernel_a_filter_is_an_operator_string_of_the_layers_channels():
    model = meta(conv="hetconv(part={c})")
    assert {(m.in_channels, m.part) for m in model.modules() if isinstance(m, HetConv2d)} == {
        (64, 64),
        (128, 128),
        (256, 256),
        (512, 512),
    }
    assert all(m.spatial.shape[1] == 1 for m in model.modules() if isinstance(m, HetConv2d))


def test_squeeze_excite_follows_every_activation():
    model = meta(se=8)
    more = sum(2 * c * c // 8 for c in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512))
    assert more == 452_608  # of these the paper's parameter column has half
    assert params(model) - params(meta()) == more
    x = torch.empty(1, 3, 32, 32, device="meta")
    assert count(model, x, "macs_weights").flops - count(meta(), x, "macs_weights").flops == more
    assert [n for n, _ in model.stage1.named_children()] == [
        "conv1",
        "norm1",
        "act1",
        "se1",
        "conv2",
        "norm2",
        "act2",
        "se2",
        "pool",
    ]


@pytest.mark.parametrize("conv", DENSE)
def test_every_operator_builds_runs_and_trains(conv):
    model = build("vgg16_cifar", width=0.25, conv=conv)
    y = model(torch.randn(2, 3, 32, 33))
    assert y.shape == (2, 10)
    y.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    model.eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 45, 32)).isfinite().all()


def test_the_state_dict_keys_are_kept():
    model = build("vgg16_cifar", width=0.25, conv="hetconv(part=2)", se=4)
    keys = list(model.state_dict())
    assert (len(keys), params(model)) == (138, 588_954)
    assert {
        "stage1.conv1.bias",
        "stage1.conv2.spatial",
        "stage5.conv3.pointwise",
        "stage5.norm3.running_var",
        "stage2.se1.down.weight",
        "head.fc1.bias",
        "head.norm1.weight",
        "head.fc2.weight",
    } <= set(keys)
    assert {k.split(".")[0] for k in keys} == {*(f"stage{i}" for i in range(1, 6)), "head"}
    model.load_state_dict(build("vgg16_cifar", width=0.25, se=4).state_dict())  # HetConv takes a dense `weight`


def test_a_reference_builds_the_same():
    model = load("leanconv:vgg16_cifar?conv=hetconv(part=4)&width=0.25")
    assert model.extra_repr() == build("vgg16_cifar", conv="hetconv(part=4)", width=0.25).extra_repr()
    assert model.stage5.conv3.part == 4
    assert model.stage1.conv1.out_channels == 16


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"conv": "hetconv(part=3)"}, UnsupportedConv, "vgg16_cifar, stage1.conv2 .64->64 3x3 p1.: hetconv: part=3"),
        ({"conv": "inception_dw"}, UnsupportedConv, "inception_dw replaces none of its layers"),
        ({"dropout": 1}, BadInput, "dropout=1: a share"),
        ({"se": 2.5}, BadInput, "se=2.5"),
        ({"width": -1}, BadInput, "width=-1"),
        ({"keep": "stage1.conv1"}, BadInput, "keep='stage1.conv1' matches no replaced layer .did you mean"),
        ({"norm": False}, UnknownName, "no option 'norm'"),
    ],
)
def test_what_cannot_be_built_is_said(options, error, says):
    with pytest.raises(error, match=says):
        meta(**options)


def test_small_images_are_refused():
    with pytest.raises(BadInput, match="images of 32x32 and larger, got 31x40"):
        build("vgg16_cifar", width=0.1)(torch.randn(1, 3, 31, 40))
