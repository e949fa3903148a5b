"""A model's layers call the kernels for training, and are themselves again afterwards."""

import copy
import io

import pytest
import torch
from torch import nn

from leanconv.kernels.cpu import training
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.models import UNet
from leanconv.nn import SPConv2d, make
from tests.kernels.training_cases import assert_compiles_as_one_graph, assert_same_loss_curve

needs_kernels = pytest.mark.skipif(available() is not None, reason=str(available()))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 12, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=12),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, (5, 3), padding="same", groups=12, bias=False),
        nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect", groups=12),
        nn.Conv2d(12, 24, 3, groups=12),
    )


def step(model, x, autocast=False):
    """Result, and gradients of the map and of all parameters."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.float().square().mean().backward()
    return [y, x.grad, *(p.grad.clone() for p in model.parameters())]


def distances(found, expected):
    """Each tensor's greatest difference, in parts of the greatest number of all gradients."""
    largest = max(e.abs().max() for e in expected[1:])
    return [float((f - e).abs().max() / largest) for f, e in zip(found[1:], expected[1:], strict=True)]


@needs_kernels
def test_layers_are_changed_and_restored():
    model, x = network(), torch.randn(2, 3, 9, 11)
    keys, parameters, before = list(model.state_dict()), list(model.parameters()), step(model, x)
    with use_training_kernels_(model) as kernels:
        assert kernels.layers == ["2", "0", "1", "4"]
        assert str(kernels) == "4 layers train on kernels: 1 BatchNorm2d, 3 Conv2d"
        assert list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert use_training_kernels_(model).layers == []  # they call them already
        during = step(model, x)
        assert max(distances(during, before)) < 1e-5
        assert [a.dtype for a in during] == [a.dtype for a in before]
    assert all("_conv_forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), before, strict=True))
    kernels.remove()


@needs_kernels
def test_autocast_is_as_near_to_float32_as_without():
    model, x = network(), torch.randn(2, 3, 9, 11)
    exact, eager = step(model, x), step(model, x, autocast=True)
    with use_training_kernels_(model):
        found = step(model, x, autocast=True)
    assert found[0].dtype == eager[0].dtype
    assert max(distances(found, exact)) < 2 * max(distances(eager, exact))


@needs_kernels
def test_a_copy_calls_its_own_layers_and_a_pickle_survives():
    model, x = network(), torch.randn(2, 3, 9, 11)
    with use_training_kernels_(model):
        other = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        nn.init.zeros_(other[1].weight)
        assert other[1]._conv_forward.args[0] is other[1]
        assert not torch.equal(model(x), other(x))
        assert torch.equal(model(x), loaded(x))


@needs_kernels
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["depthwise_separable", "splconv", "spconv", "hetconv(part=4)", "depthwise", "1x1"])
def test_what_becomes_a_file_has_pytorch_s_operators_alone(kind, recompute):
    """Other runtimes have none of ours."""
    plain = {"depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8), "1x1": nn.Conv2d(8, 8, 1)}
    layer = plain[kind] if kind in plain else make(kind, in_channels=8, out_channels=8, kernel_size=3, padding=1)
    model, x = nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU()).eval(), torch.randn(2, 8, 9, 11)
    with use_training_kernels_(model, recompute=recompute):
        graph = torch.export.export(model, (x,)).graph
    assert not any("leanconv" in str(node.target) for node in graph.nodes)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(autocast):
    assert_compiles_as_one_graph(network(), torch.randn(2, 3, 9, 11), autocast)


@needs_kernels
def test_what_kernels_do_not_take_runs_in_pytorch():
    model, x = network().double(), torch.randn(2, 3, 9, 11, dtype=torch.float64)
    before = step(model, x)
    with use_training_kernels_(model):
        assert all(torch.equal(a, b) for a, b in zip(step(model, x), before, strict=True))
        assert model.to("meta")(x.to("meta")).shape == before[0].shape


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("conv", ["depthwise_separable", "splconv", "inception_dw"])
def test_training_has_the_same_loss_curve(conv):
    torch.manual_seed(0)
    x, target = torch.randn(4, 3, 32, 32), torch.randint(2, (4, 32, 32))

    def made():
        return UNet(3, 2, base=8, levels=2, conv=conv) if conv != "inception_dw" else inception()

    assert_same_loss_curve(made, x, target, lr=0.05, steps=8, used=lambda handle: handle.layers)


def inception():
    from leanconv.nn import InceptionDWConv2d

    return nn.Sequential(
        nn.Conv2d(3, 32, 1), InceptionDWConv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.Conv2d(32, 2, 1)
    )


@needs_kernels
def test_gradients_do_not_depend_on_the_default_type():
    """A script that sets float64 as the default still trains float32 models."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), SPConv2d(8, 8, 3, padding=1))
    x = torch.randn(2, 8, 9, 11)
    with use_training_kernels_(model) as kernels:
        assert kernels.layers == ["0", "1", "1.spatial", "1.pointwise", "1.plain"]
        expected = step(model, x)
        torch.set_default_dtype(torch.float64)
        try:
            found = step(model, x)
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_kernels
@pytest.mark.parametrize("what", ["weight", "bias"])
def test_a_parameter_of_another_device_is_left_to_pytorch(what, monkeypatch):
    """The kernels would read its pointer as one of the CPU's memory."""
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *_: "PyTorch's")
    layer = nn.Conv2d(5, 5, 3, groups=5)
    with use_training_kernels_(layer):
        assert layer(torch.randn(2, 5, 9, 11)) != "PyTorch's"
        setattr(layer, what, nn.Parameter(getattr(layer, what).detach().to("meta")))
        assert layer(torch.randn(2, 5, 9, 11)) == "PyTorch's"


@needs_kernels
def test_a_view_that_is_negated_by_a_flag_is_read_with_its_sign():
    x = torch.randn(2, 1, 5, 7, dtype=torch.complex64).conj().imag
    layer = nn.Conv2d(1, 1, 3)
    assert x.is_neg()
    expected = layer(x)
    with use_training_kernels_(layer):
        torch.testing.assert_close(layer(x), expected)


def test_without_a_compiler_nothing_changes(monkeypatch):
    monkeypatch.setattr(training, "runtime", lambda: None)
    monkeypatch.setattr(training.build, "runtime", lambda part: None)
    model, x = network(), torch.randn(2, 3, 9, 11)
    before = step(model, x)
    assert "compiler" in str(available())
    assert use_training_kernels_(model).layers == []
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), before, strict=True))


@needs_kernels
@pytest.mark.parametrize(("channels", "dilation", "ours"), [(8, 1, False), (16, 1, False), (8, 2, True), (24, 1, True)])
def test_narrow_whole_maps_are_left_to_onednn(channels, dilation, ours, monkeypatch):
    layer = nn.Conv2d(channels, channels, 3, padding=1, dilation=dilation, groups=channels)
    x = torch.randn(2, channels, 9, 11).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *_: "PyTorch's")
    with use_training_kernels_(layer):
        assert (layer(x) != "PyTorch's") == ours
        assert layer(torch.cat([x, x], 1)[:, :channels]) != "PyTorch's"  # a slice
        assert layer(x.bfloat16()) != "PyTorch's"


@needs_kernels
def test_a_head_of_one_class_and_a_wide_layer_stay():
    layers = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Conv2d(128, 64, 1), nn.Conv2d(8, 8, 1, stride=2))
    assert use_training_kernels_(layers).layers == []


@needs_kernels
def test_whole_maps_of_wider_layers_are_left_to_onednn(monkeypatch):
    layer = nn.Conv2d(32, 32, 1)
    x = torch.randn(2, 32, 9, 11).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *_: "PyTorch's")
    with use_training_kernels_(layer):
        assert str(layer(x)) == "PyTorch's"
        assert layer(torch.cat([x, x], 1)[:, :32]).shape == x.shape  # a slice
        assert layer(x.bfloat16()).shape == x.shape
