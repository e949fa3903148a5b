"""compare(): the figures of each model, ratios against the first, and models that are more than a plain module."""

import json

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.measure import compare
from leanconv.models.unet import unet

X = torch.randn(2, 3, 32, 32)


def test_figures_and_ratios():
    small, large = unet(base=4, levels=1), unet(base=16, levels=2)
    result = compare({"large": large, "small": small}, X, conventions=["torchstat"], budget_s=0)
    assert [entry.name for entry in result.entries] == ["large", "small"]
    first, second = result.entries
    assert first.speedup == 1.0
    assert second.speedup == pytest.approx(first.timing.median_ms / second.timing.median_ms)
    assert second.fps == pytest.approx(2e3 / second.timing.median_ms)
    assert result["small"].counts["macs"].params == sum(p.numel() for p in small.parameters())
    data, text = json.loads(json.dumps(result.to_dict())), str(result)
    assert data["models"][0]["conventions"]["torchstat"]["madd"] > 0
    for word in ("against large", "torchstat MAdd", "1.00x", "batch 2", "FPS", "IQR"):
        assert word in text


def test_the_same_model_twice_and_left_as_it_was():
    model = unet(base=4, levels=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = compare({"a": model, "b": model}, X, budget_s=0)
    assert result["b"].speedup > 0
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_whose_work_torch_does_not_see_has_no_counts():
    class Foreign(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy() * 2)

    result = compare({"dense": nn.Conv2d(3, 3, 1), "foreign": Foreign()}, X, conventions=["torchstat"], budget_s=0)
    assert result["foreign"].counts is None
    assert result.to_dict()["models"][1]["macs"] is None
    assert " - " in str(result)


def test_an_optimised_model_counts_as_the_one_it_was_made_from():
    class Optimised(nn.Module):
        optimized_by_leanconv = True

        def __init__(self, original):
            super().__init__()
            self.__dict__["original"] = original

        def forward(self, x):
            return torch.from_numpy(x.numpy() * 2)

    dense = nn.Conv2d(3, 3, 1)
    result = compare({"dense": dense, "fast": Optimised(dense)}, X, budget_s=0)
    assert result["fast"].counts["macs"].flops == result["dense"].counts["macs"].flops == 2 * 1024 * 9


def test_refusals():
    with pytest.raises(BadInput, match="no models"):
        compare({}, X)
    with pytest.raises(BadInput, match="no tensor"):
        compare({"a": nn.Identity()}, "x")
    with pytest.raises(BadInput, match="there are: a"):
        compare({"a": nn.ReLU()}, X, budget_s=0)["b"]
