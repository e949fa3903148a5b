"""HetConv in one kernel while it trains: results, gradients, memory, who sees it, and what is left to PyTorch."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from leanconv.errors import BadInput
from leanconv.kernels import hetconv_layers
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.nn import HetConv2d
from tests.cpus import SAPPHIRE_RAPIDS, ZEN4
from tests.kernels.training_cases import (
    assert_a_batch_of_none_has_a_result,
    assert_compiles_as_one_graph,
    assert_float64_and_one_sample_are_pytorchs,
    assert_near_in_bfloat16,
    assert_same_penalty,
    assert_step_as_in_float64,
    assert_step_as_without,
    assert_two_layers_learn_the_same,
    counted,
    peak_of_four_layers,
    step,
)

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "part=4": lambda: HetConv2d(8, 12, 3, padding=1),
    "part=2, no bias": lambda: HetConv2d(6, 10, 3, padding=1, part=2, bias=False),
    "part=8, strided": lambda: HetConv2d(16, 40, 3, stride=2, padding=1, part=8),
    "blocked": lambda: HetConv2d(16, 24, 3, padding=1, arrangement="blocked"),
    "blocked, part=2, strided": lambda: HetConv2d(6, 40, 3, stride=2, padding=(2, 1), part=2, arrangement="blocked"),
    "1x5, dilated": lambda: HetConv2d(8, 12, (1, 5), padding=(1, 3), dilation=(1, 2)),
}


def made(kind="part=4"):
    torch.manual_seed(0)
    return LAYERS[kind]()


@pytest.fixture
def runs(monkeypatch):
    """How often the operator's kernel ran."""
    return counted(monkeypatch, hetconv_layers.cpu, "hetconv")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_float64(kind, frozen, recompute, runs):
    layer = made(kind)
    x = 1 + torch.randn(3, layer.in_channels, 9, 11)
    if frozen:  # the first layer of a network, some of whose weights are held
        layer.spatial.requires_grad_(False)
    before = dict(layer.__dict__)
    assert_step_as_in_float64(layer, x, image=frozen, recompute=recompute, used=lambda handle: handle.layers == [""])
    assert len(runs) == 1
    assert layer.__dict__ == before


@pytest.mark.parametrize("cpu", [ZEN4, SAPPHIRE_RAPIDS], ids=["vectors", "tiles"])
@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_is_as_near_to_float32_as_without(kind, cpu, runs, monkeypatch):
    """On matrix tiles the dense convolution that it equals runs in its place."""
    monkeypatch.setattr(hetconv_layers, "this_cpu", lambda: cpu)
    monkeypatch.setattr(hetconv_layers, "_ON_TILES", 0)
    layer = made(kind)
    x = torch.randn(3, layer.in_channels, 9, 11)
    assert_near_in_bfloat16(layer, x, times=1.5)
    assert len(runs) == (not cpu.amx)
    assert all(each[0].dtype == torch.bfloat16 for each in runs)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("frozen", ["", "spatial", "pointwise"])
def test_on_tiles_it_is_the_dense_convolution(kind, frozen, monkeypatch):
    """Where it pays: a small map stays in vectors. Gradients, and theirs, are bfloat16's."""
    monkeypatch.setattr(hetconv_layers, "this_cpu", lambda: SAPPHIRE_RAPIDS)
    seen = counted(monkeypatch, hetconv_layers.ops, "composed")
    layer = made(kind)
    x = torch.randn(2, layer.in_channels, 9, 11, requires_grad=True)
    if frozen:
        getattr(layer, frozen).requires_grad_(False)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def slopes(twice):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        found = torch.autograd.grad(y.float().pow(2).sum(), wanted, create_graph=twice)
        return torch.autograd.grad(found[0].float().pow(2).sum(), wanted) if twice else found

    with use_training_kernels_(layer):
        slopes(False)
        assert not seen
        monkeypatch.setattr(hetconv_layers, "_ON_TILES", 0)
        own = [slopes(False), slopes(True)]
        assert len(seen) == 2
    for ours, theirs in zip(own, [slopes(False), slopes(True)], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            assert (a - b).norm() <= 0.03 * b.norm()


@pytest.mark.parametrize(("stride", "width", "dense"), [(2, 1, False), (2, 3, True), ((2, 1), 1, True)])
def test_one_column_behind_a_stride_is_not_left_to_pytorch(stride, width, dense, monkeypatch):
    """PyTorch 2.14.1's bfloat16 convolution on AMX is wrong there."""
    monkeypatch.setattr(hetconv_layers, "this_cpu", lambda: SAPPHIRE_RAPIDS)
    monkeypatch.setattr(hetconv_layers, "_ON_TILES", 0)
    seen = counted(monkeypatch, hetconv_layers.ops, "composed")
    layer, x = HetConv2d(16, 16, 3, stride, 1), torch.randn(2, 16, 13, width)
    with use_training_kernels_(layer), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert bool(seen) == dense
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["part=4", "part=8, strided", "blocked"])
def test_gradients_of_gradients(kind):
    layer = made(kind)
    x = torch.randn(2, layer.in_channels, 5, 7, requires_grad=True)
    assert_same_penalty(layer, x, list(layer.parameters()), lambda: layer(x).pow(3).sum())


@pytest.mark.parametrize("kind", ["part=4", "blocked"])
@pytest.mark.parametrize(("autocast", "cpu"), [(False, ZEN4), (True, ZEN4), (True, SAPPHIRE_RAPIDS)])
def test_compiles_as_one_graph(autocast, cpu, kind, monkeypatch):
    monkeypatch.setattr(hetconv_layers, "this_cpu", lambda: cpu)
    monkeypatch.setattr(hetconv_layers, "_ON_TILES", 0)
    layer = made(kind)
    assert_compiles_as_one_graph(layer, torch.randn(3, layer.in_channels, 9, 11), autocast)


def test_a_network_learns_the_same():
    assert_two_layers_learn_the_same(HetConv2d)


def test_hooks_of_the_layer_see_what_it_makes(runs):
    layer, x, seen = made(), torch.randn(2, 8, 9, 11, requires_grad=True), []
    layer.register_forward_hook(lambda module, inputs, y: seen.append(y))
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    with use_training_kernels_(layer):
        y = layer(x)
        y.sum().backward()
    assert len(runs) == 1
    assert torch.equal(seen[0], y)
    assert torch.equal(seen[1], x.grad)


def test_a_parametrised_weight_is_what_runs(runs):
    layer, x = made(), torch.randn(2, 8, 9, 11)
    torch.nn.utils.parametrizations.weight_norm(layer, "spatial")
    plain = copy.deepcopy(layer)
    with use_training_kernels_(layer):
        found = step(layer, x)
    assert runs
    for a, b in zip(found, step(plain, x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


class _Doubled(HetConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Doubled(8, 12, 3, padding=1),
        lambda: HetConv2d(8, 12, 3, padding=1, padding_mode="reflect"),
        lambda: HetConv2d(8, 12, 3, padding=1, part=1),
        lambda: HetConv2d(8, 10, 3, padding=1, part=3, ragged=True),
        lambda: HetConv2d(8, 2056, 3, padding=1),
    ],
)
def test_other_layers_compute_as_before(make, runs):
    assert_step_as_without(make(), torch.randn(3, 8, 9, 11), atol=1e-4, rtol=1e-3)
    assert not runs


def test_a_map_of_float64_and_one_sample_are_left_to_pytorch(runs):
    assert_float64_and_one_sample_are_pytorchs(made(), runs)


def test_a_batch_of_none_has_a_result():
    layer = made()
    assert_a_batch_of_none_has_a_result(layer, layer.spatial)


def test_a_wrong_number_of_channels_is_named():
    layer = made()
    use_training_kernels_(layer)
    with pytest.raises(BadInput, match="7 channels, the layer takes 8"):
        layer(torch.randn(1, 7, 6, 6))


def test_a_network_takes_no_more_memory_than_a_dense_one():
    assert peak_of_four_layers(HetConv2d) <= peak_of_four_layers(nn.Conv2d)


def test_a_checkpoint_computes_it_again():
    layer, x = made(), torch.randn(2, 8, 9, 11)
    use_training_kernels_(layer)
    plain, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(plain).square().sum().backward()
    torch.utils.checkpoint.checkpoint(layer, again, use_reentrant=False).square().sum().backward()
    assert torch.equal(plain.grad, again.grad)
