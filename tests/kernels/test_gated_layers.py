"""SPConv and SPLConv as a whole: results, gradients, statistics, memory, threads, and what is computed otherwise."""

import copy

import pytest
import torch
from torch import nn

from leanconv.kernels import gated_layers
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.measure.timing.training import peak_bytes
from leanconv.nn import SPConv2d, SPLConv2d
from tests.kernels.training_cases import (
    assert_as_exact,
    assert_same_loss_curve,
    counted,
    step_and_buffers,
    with_random_norms,
)

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "splconv": lambda: SPLConv2d(8, 12, 3, padding=1),
    "splconv, uneven, no bias": lambda: SPLConv2d(
        8, 5, 3, padding=1, alpha=0.4, rate=3, dilated_kernel_size=2, bias=False
    ),
    "splconv, one stencil": lambda: SPLConv2d(8, 16, (1, 5), padding=(0, 2), dilated=False),
    "splconv, no stencil": lambda: SPLConv2d(8, 7, 3, padding=1, depthwise=False, dilated=False),
    "spconv": lambda: SPConv2d(8, 12, 3, padding=1),
    "spconv, stride": lambda: SPConv2d(8, 12, 3, stride=2, padding=1),
    "spconv, one norm": lambda: SPConv2d(8, 12, 3, padding=1, inner_norms=1),
    "spconv, uneven, no bias": lambda: SPConv2d(8, 10, (1, 5), padding=(0, 4), dilation=2, alpha=0.36, bias=False),
}
BOTH = ["spconv", "splconv"]
EACH = [*BOTH, "spconv, stride"]
CLASSES = {"spconv": SPConv2d, "splconv": SPLConv2d}


def made(kind):
    torch.manual_seed(0)
    return with_random_norms(LAYERS[kind]())


@pytest.fixture
def runs(monkeypatch):
    """The blends that were written over a branch: one for each forward pass of a whole layer."""
    return counted(monkeypatch, gated_layers.cpu, "normalized_blend_")


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("frozen", [(), ("stencil1", "spatial", "norm", "norm1"), ("pointwise", "plain", "norm2")])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_gradients_and_statistics_are_those_of_float64(kind, frozen, momentum, runs):
    layer, x = made(kind), 1 + torch.randn(3, 8, 9, 11)
    norms = [each for each in layer.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum
    for name, p in layer.named_parameters():
        p.requires_grad_(name.split(".")[0] not in frozen)
    plain, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    with use_training_kernels_(layer):
        for _ in range(2):
            assert_as_exact(
                step_and_buffers(layer, x, image=bool(frozen)),
                step_and_buffers(plain, x, image=bool(frozen)),
                step_and_buffers(exact, x.double(), image=bool(frozen)),
            )
    assert len(runs) == 2
    assert [int(norm.num_batches_tracked) for norm in norms] == [2] * len(norms)
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_bits_are_those_of_the_layer_part_by_part(kind, autocast, runs, monkeypatch):
    layer, x = made(kind), torch.randn(3, 8, 9, 11)
    parts = copy.deepcopy(layer)
    with use_training_kernels_(layer):
        found = step_and_buffers(layer, x, autocast=autocast)
    monkeypatch.setattr(gated_layers, "_inputs", lambda *given: None)
    with use_training_kernels_(parts):
        expected = step_and_buffers(parts, x, autocast=autocast)
    assert len(runs) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 9, 11), (2, 8, 1, 1), (5, 8, 33, 31)])
@pytest.mark.parametrize("kind", EACH)
def test_any_number_of_threads_and_memory_that_held_nan_give_the_same_bits(kind, shape, autocast, runs):
    layer, x, before = made(kind), torch.randn(shape), torch.get_num_threads()
    found = []
    try:
        for threads, nan in ((1, False), (2, False), (2, True), (1, True)):
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(nan)  # it fills new memory with NaN
            own = copy.deepcopy(layer)
            with use_training_kernels_(own):
                found.append(step_and_buffers(own, x, autocast=autocast))
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)
    assert len(runs) == 4
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", EACH)
def test_of_maps_it_keeps_its_input_alone(kind):
    layer, x, kept = made(kind), torch.randn(3, 8, 9, 11), []
    with (
        use_training_kernels_(layer),
        torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each),
    ):
        layer(x)
    assert [each.shape for each in kept if each.dim() == 4 and len(each) == len(x)] == [x.shape]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", BOTH)
def test_it_takes_as_much_memory_as_a_dense_layer(kind, autocast):
    def network(conv):
        torch.manual_seed(0)
        parts = []
        for _ in range(5):
            parts += [conv(), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts).to(memory_format=torch.channels_last)

    def step(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.sum().backward()

    x = torch.randn(8, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    held = {}
    for conv in (nn.Conv2d, CLASSES[kind]):
        model = network(lambda conv=conv: conv(16, 16, 3, padding=1))
        with use_training_kernels_(model):
            held[conv] = peak_bytes(lambda model=model: step(model))
    # Both branches and the gradient of the blend, of one layer at a time: the dense layer has two maps then.
    assert held[CLASSES[kind]] <= held[nn.Conv2d] + 1.1 * x.numel() * (2 if autocast else 4)


@pytest.mark.parametrize("kind", BOTH)
def test_a_network_learns_as_without(kind, runs):
    conv = CLASSES[kind]
    torch.manual_seed(1)
    x, target = torch.randn(8, 4, 16, 16), torch.randint(4, (8,))

    def network():
        parts = [conv(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 3, padding=1)]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    assert_same_loss_curve(network, x, target, lr=0.05, steps=12, used=lambda handle: handle.kinds[conv.__name__] == 2)
    assert len(runs) == 2 * 2 * 12


@pytest.mark.parametrize("kind", EACH)
def test_weights_that_changed_since_are_an_error(kind):
    layer = made(kind)
    with use_training_kernels_(layer):
        y = layer(torch.randn(2, 8, 9, 11).requires_grad_())
        with torch.no_grad():
            layer.pointwise.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("kind", EACH)
def test_a_gradient_of_its_gradient_is_refused(kind):
    layer, x = made(kind), torch.randn(2, 8, 9, 11, requires_grad=True)
    with use_training_kernels_(layer):
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[
            (kind, change)
            for kind in BOTH
            for change in ("pointwise", "pool", "eval mode", "no gradient", "float64", "wide")
        ],
        *[("spconv", "norm1"), ("spconv", "norm2"), ("splconv", "norm"), ("splconv", "act")],
    ],
)
def test_what_it_does_not_take_is_computed_otherwise(kind, change, runs):
    torch.manual_seed(0)
    layer = with_random_norms(CLASSES[kind](256, 128, 3, padding=1)) if change == "wide" else made(kind)
    x = torch.randn(2, layer.in_channels, 9, 11)
    seen = []
    if change == "float64":
        layer, x = layer.double(), x.double()
    layer.train(change != "eval mode")
    plain = copy.deepcopy(layer)
    with torch.set_grad_enabled(change != "no gradient"), use_training_kernels_(layer):
        if hasattr(layer, change):
            getattr(layer, change).register_forward_hook(lambda *call: seen.append(1))
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)
    assert not runs
    assert bool(seen) == hasattr(layer, change)


@pytest.mark.parametrize("kind", EACH)
def test_a_checkpoint_around_it_gives_the_same_gradients(kind, runs):
    layer, x = made(kind), torch.randn(3, 8, 9, 11)
    with use_training_kernels_(layer):
        found = []
        for around in (lambda x: layer(x), lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)):
            layer.zero_grad()
            around(x).square().sum().backward()
            found.append([p.grad.clone() for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
