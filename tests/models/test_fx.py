"""The networks, and what stays of them after a swap, as graphs of torch.fx: feature extractors are made of those."""

import copy

import pytest
import torch
from torch import nn

from leanconv.convert import apply_, plan
from leanconv.errors import BadInput
from leanconv.models import build, names
from leanconv.nn import Operator

OPTIONS = {
    "unet": {"base": 4, "levels": 2, "conv": "splconv"},
    "resnet18": {"width": 0.25, "conv": "hetconv(part=4)", "se": 4},
    "mobilenet_v3_small": {"conv": "fuseconv"},
    "shufflenet_v2": {"width": 0.5, "conv": "drconv"},
}


@pytest.mark.parametrize("name", [name for name in names() if name in OPTIONS or name.endswith(("cifar", "v1", "v2"))])
def test_networks_are_traced(name):
    model = build(name, **OPTIONS.get(name, {})).eval()
    graph = torch.fx.symbolic_trace(model)
    for size in ((1, 32, 32), (2, 64, 32)):
        x = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x))
    for each in (model, graph):
        with pytest.raises(BadInput, match="C=3"):
            each(torch.randn(1, 4, 32, 32))


def small(operator):
    """A host as users write it, its second and third convolution swapped."""

    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            x = self.layer2(self.layer1(self.stem(x)))
            return self.fc(x.mean((2, 3)))

    host = Host().eval()
    apply_(host, plan(host, torch.randn(1, 3, 12, 12), to=operator))
    assert isinstance(host.layer1[0], Operator)
    return host


@pytest.mark.parametrize("leaf", [False, True], ids=["through", "whole"])
@pytest.mark.parametrize("operator", ["hetconv(part=4)", "odconv", "drconv", "splconv", "lhconv", "spatial_bottleneck"])
def test_feature_extractors_after_a_swap(operator, leaf):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, seen, wanted = small(operator), {}, ("layer1.0", "layer2", "fc")
    options = {"leaf_modules": [Operator]} if leaf else {}
    extractor = extraction.create_feature_extractor(copy.deepcopy(model), list(wanted), tracer_kwargs=options)
    for name in wanted:
        model.get_submodule(name).register_forward_hook(lambda m, i, y, name=name: seen.update({name: y}))
    for training in (False, True):
        x = torch.randn(2, 3, 11, 14)
        found = extractor.train(training)(x)
        model.train(training)(x)
        for name in wanted:
            torch.testing.assert_close(found[name], seen[name])
    found["fc"].sum().backward()
    used = [key for key, p in extractor.named_parameters() if p.grad is not None]
    assert used == [key for key, _ in extractor.named_parameters()]
