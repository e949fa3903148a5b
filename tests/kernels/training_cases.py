"""What the tests of training kernels share: norms with affine parts, a step, loss curves, one channel of NaN."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.kernels.training import use_training_kernels_


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
