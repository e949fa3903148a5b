"""A network built from an operator is the standard one after `plan` and `apply_`: layers, keys, counts."""

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv import registry
from leanconv.measure.counting.count import count
from leanconv.models import build

OPERATORS = [name for name in registry.names() if name != "conv"]
X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def replaces(name: str) -> frozenset[str]:
    return registry.get(name).replaces


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("conv", [name for name in OPERATORS if "dense" in replaces(name)])
@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg16_cifar"])
def test_the_builder_replaces_what_plan_replaces(name, conv):
    dense = build(name, width=0.25, se=4)
    steps = lc.plan(dense, X, to=conv)
    first, *kept = (step.name for step in steps if step.to is None)
    # What an operator cannot stand for, `plan` keeps with a reason; the builder wants it named.
    assert kept == (["layer2.0.conv1", "layer3.0.conv1"] if (name[0], conv) == ("r", "spatial_bottleneck") else [])
    lc.apply_(dense, steps, init="fresh")
    assert first in ("conv1", "stage1.conv1")
    assert shapes(dense) == shapes(build(name, width=0.25, se=4, conv=conv, keep=" ".join(kept)))


@pytest.mark.parametrize("conv", [name for name in OPERATORS if {"depthwise", "pointwise"} & replaces(name)])
def test_mobilenets_layers_are_those_of_plan(conv):
    """But for HetConv and its like, which take two layers at once: `plan` swaps one for one."""
    dense = build("mobilenet_v1_cifar", width=0.25)
    steps = lc.plan(dense, X, to=conv)
    if not any(step.to for step in steps):
        assert conv == "xsepconv"
        return
    lc.apply_(dense, steps, init="fresh")
    kept = " ".join(step.name for step in steps if step.to is None and step.name != "first.conv")
    assert shapes(dense) == shapes(build("mobilenet_v1_cifar", width=0.25, conv=conv, keep=kept))


def test_torchvisions_network_after_apply_counts_like_ours():
    models = pytest.importorskip("torchvision", reason="compares with torchvision's network").models
    theirs = models.resnet18(num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    lc.apply_(theirs, lc.plan(theirs, x, to="hetconv(part=4)"), init="fresh")
    ours = build("resnet18", num_classes=5, conv="hetconv(part=4)").eval()
    assert shapes(theirs) == shapes(ours)
    assert count(theirs, x, "macs").flops == count(ours, x, "macs").flops
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg16_cifar", "mobilenet_v1_cifar"])
def test_every_batch_norm_folds(name):
    model = build(name, width=0.25, conv="hetconv(part=4)", se=4).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    with torch.inference_mode():
        y = model(X)
    lc.fold_(model, X)
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)) for m in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(model(X), y, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_option_a_shortcuts_and_squeeze_excite_export(tmp_path):
    pytest.importorskip("onnxruntime", reason="runs the exported file")
    model = build("resnet20_cifar", width=0.25, se=4).eval()
    lc.export(model, torch.randn(2, 3, 32, 32), tmp_path / "resnet20.onnx")
    assert (tmp_path / "resnet20.onnx").stat().st_size > 10_000
