"""What the tests of training kernels share: norms with affine parts, steps and their errors, loss curves, NaN."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.kernels.training import use_training_kernels_
from leanconv.measure.timing.training import peak_bytes


def with_random_norms(layer):
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return layer


def step(layer, x, autocast=False, image=False):
    """Result, and gradients of the map (unless it is an `image`) and of the parameters that learn."""
    x = x.clone().requires_grad_(not image)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    wanted = [each for each in (x, *layer.parameters()) if each.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), wanted)]


def counted(monkeypatch, room, name):
    """The arguments of each call of a room's function, from now on."""
    found, inner = [], getattr(room, name)

    def noted(*inputs):
        found.append(inputs)
        return inner(*inputs)

    monkeypatch.setattr(room, name, noted)
    return found


def assert_as_exact(found, plain, exact):
    """At most four times the error of what PyTorch found, against float64."""
    for a, b, c in zip(found, plain, exact, strict=True):
        allowed = 4 * float((b - c).abs().max()) + 4e-6 * max(1.0, float(c.abs().max()))
        assert float((a - c).abs().max()) <= allowed


def assert_step_as_in_float64(layer, x, *, image, recompute, used=lambda handle: True):
    """A step with the kernels has at most four times the error of one without. `used`: what must hold of the handle."""
    plain, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    with use_training_kernels_(layer, recompute=recompute) as handle:
        assert used(handle)
        found = step(layer, x, image=image)
    assert_as_exact(found, step(plain, x, image=image), step(exact, x.double(), image=image))


def assert_near_in_bfloat16(layer, x, *, times, of_own=0.0, of_largest=0.0):
    """Under autocast a step is off from float32 by at most `times` PyTorch's error; its types are PyTorch's.

    of_own, of_largest: shares of a number's own norm, and of the largest gradient's, that are allowed beside it.
    """
    exact, eager = step(copy.deepcopy(layer), x), step(copy.deepcopy(layer), x, autocast=True)
    with use_training_kernels_(layer):
        found = step(layer, x, autocast=True)
    largest = max(float(c.norm()) for c in exact[1:])
    for a, b, c in zip(found, eager, exact, strict=True):
        assert a.dtype == b.dtype
        allowed = times * (b.float() - c).norm() + of_own * c.float().norm() + of_largest * largest
        assert (a.float() - c).norm() <= allowed


def assert_same_penalty(layer, x, weights, run):
    """The gradients of a penalty on the gradient of `run()` by `x`, with kernels and without."""

    def penalty():
        (slope,) = torch.autograd.grad(run(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weights)

    expected = penalty()
    with use_training_kernels_(layer):
        for a, b in zip(penalty(), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def assert_step_as_without(layer, x, **tolerance):
    """A step with the kernels, of a layer that they leave, against one without."""
    plain = copy.deepcopy(layer)
    with use_training_kernels_(layer):
        found = step(layer, x)
    for a, b in zip(found, step(plain, x), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def assert_two_layers_learn_the_same(conv):
    """A small classifier with a layer of each stride."""
    torch.manual_seed(1)
    x, target = torch.randn(16, 3, 12, 12), torch.arange(16) % 4

    def network():
        parts = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
        parts += [conv(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        parts += [conv(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*parts, nn.Linear(16, 4)).to(memory_format=torch.channels_last)

    assert_same_loss_curve(network, x, target, lr=0.05, steps=12, used=lambda handle: handle.kinds[conv.__name__] == 2)


def assert_compiles_as_one_graph(model, x, autocast):
    """With the kernels, and to the same bits."""
    torch.compiler.reset()  # of what another test compiled from the same functions; there is a limit
    with use_training_kernels_(model):
        eager = step(model, x, autocast)
        compiled = step(torch.compile(model, fullgraph=True, backend="aot_eager"), x, autocast)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def step_and_buffers(layer, x, **how):
    """The same, and the buffers after it: the statistics of norms."""
    return [*step(layer, x, **how), *(each.clone() for each in layer.buffers())]


def assert_same_loss_curve(made, x, target, *, lr, steps, used):
    """With the kernels a network learns as without them, and twice the same. `used`: what must hold of the handle."""

    def losses(kernels):
        torch.manual_seed(0)
        model, found = made(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        handle = use_training_kernels_(model) if kernels else None
        assert handle is None or used(handle)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    plain, ours = losses(False), losses(True)
    assert ours == losses(True)  # bit by bit
    assert plain[-1] < plain[0]
    assert ours == pytest.approx(plain, rel=1e-3)


def assert_nan_in_channel_alone(channel, maps, sums, statistics):
    for found in maps:
        assert found[:, channel].isnan().all()
        assert found.isnan().sum() == found[:, channel].numel()
    assert sums.isnan().nonzero()[:, 1].unique().tolist() == [channel]
    assert statistics.isnan().nonzero().tolist() == [[0, channel], [1, channel]]


def assert_float64_and_one_sample_are_pytorchs(layer, runs):
    """The kernel runs for neither; both compute as before. `runs`: its calls."""
    layer = layer.double()
    x = torch.randn(2, layer.in_channels, 9, 11, dtype=torch.float64)
    single = layer(x[0])
    assert_step_as_without(layer, x)
    with use_training_kernels_(layer):
        torch.testing.assert_close(layer(x[0]), single)
    assert not runs


def assert_a_batch_of_none_has_a_result(layer, weight):
    with use_training_kernels_(layer):
        y = layer(torch.randn(0, layer.in_channels, 9, 11))
        y.sum().backward()
    assert list(y.shape) == [0, layer.out_channels, 9, 11]
    assert not weight.grad.any()


def peak_of_four_layers(conv):
    """The most memory of a step of four convolutions of 16 channels, each with BatchNorm and ReLU."""
    torch.manual_seed(0)
    parts = [part for _ in range(4) for part in (conv(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))]
    model = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    x = torch.randn(8, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    with use_training_kernels_(model):
        return peak_bytes(lambda: model(x).sum().backward())
