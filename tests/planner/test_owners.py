"""Whose every step of a fused program is."""

import pytest
import torch
from torch import nn

from leanconv.convert import apply_, plan
from leanconv.planner.in_context import Built
from leanconv.planner.owners import NOBODY

pytestmark = pytest.mark.slow  # each test exports a network


class Block(nn.Module):
    """conv1, norm, ReLU, conv2 and a residual; `late`: a BatchNorm after the sum, which no convolution takes in."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.late = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.conv2(torch.relu(self.norm(self.conv1(x))))
        return self.late(torch.relu(y + x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.pool = nn.Conv2d(3, 16, 3, padding=1), Block(16), nn.MaxPool2d(2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        return self.head(self.pool(self.block(self.stem(x))))


LAYERS = ["block.conv1", "block.conv2"]


def built(to=None):
    model, x = Network().eval(), torch.randn(1, 3, 16, 16)
    if to:
        apply_(model, plan(model, x, to=to, where="block.*"))
    return Built(model, ((x,), {}), LAYERS)


def steps(found):
    return [(node, found.owner[node]) for node in found.graph.nodes if node.op.is_step]


@pytest.mark.parametrize("to", [None, "hetconv(part=4)", "splconv", "depthwise_separable", "odconv"])
def test_shares_add_up_and_every_layer_has_steps(to):
    found = steps(built(to))
    for _, owner in found:
        assert sum(owner.values()) == pytest.approx(1.0)
        assert set(owner) <= {*LAYERS, NOBODY}
    for layer in [*LAYERS, NOBODY]:
        assert any(owner.get(layer, 0) > 0.99 for _, owner in found)


def test_the_dense_network_step_by_step():
    owners = {str(node.op): owner for node, owner in steps(built())}
    named = [(text, owner) for text, owner in owners.items() if "3x3" in text or "1x1" in text]
    assert [owner for text, owner in named if "residual" in text] == [{"block.conv2": 1.0}]
    assert [owner for text, owner in named if text.startswith("[3->16")] == [{NOBODY: 1.0}]
    assert [owner for text, owner in named if "->2 1x1" in text] == [{NOBODY: 1.0}]
    # A BatchNorm that nothing takes in goes with the layer before it; pooling, which no swap changes, with nobody.
    assert [owner for text, owner in named if "dw1x1" in text] == [{"block.conv2": 1.0}]
    assert [owner for text, owner in owners.items() if "pool" in text.lower()] == [{NOBODY: 1.0}]


def test_two_layers_in_one_step_share_it():
    """conv1 depthwise, conv2 a 1x1: one chain, of which each gets its multiply-adds."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)).eval()
    found = Built(model, ((torch.randn(1, 8, 12, 12),), {}), ["0", "1"])
    ((_, owner),) = steps(found)
    assert owner == pytest.approx({"0": 9 / (9 + 16), "1": 16 / (9 + 16)})
