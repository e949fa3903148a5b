"""Digests tell weights, layers, shapes and types apart."""

import torch
from torch import nn

from leanconv.runs.digest import of_model, of_tensors


def test_digests_tell_models_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    before = of_model(model)
    assert before == of_model(model)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1e-6
    assert of_model(model) != before
    assert of_model(model.to(torch.bfloat16)) != before
    assert of_tensors([torch.zeros(2, 3)]) != of_tensors([torch.zeros(3, 2)])
