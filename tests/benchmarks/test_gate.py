"""The benchmark of the gates: its figures on maps whose modes are known, and a run that was killed."""

import pytest
import torch

from benchmarks import gate
from benchmarks.gate_layers import VARIANTS, gates, spread, tempered
from leanconv.nn.base import make
from leanconv.ops.gated_sum import gated_sum
from leanconv.train.data.samples import open_data
from leanconv.train.recipe import Recipe


def test_one_mode_common_to_all_channels():
    """Half of the variance is the samples' brightness, the same in every channel; half is noise from pixel to pixel."""
    torch.manual_seed(0)
    brightness = torch.randn(64, 1, 1, 1, dtype=torch.double)
    found = spread(torch.randn(64, 16, 32, 32, dtype=torch.double) + brightness)
    assert found["between"] == pytest.approx(0.5, abs=0.1)
    assert found["common"] == pytest.approx(found["between"], rel=0.01)
    assert found["rank"] == pytest.approx(1, abs=0.02)


def test_as_many_modes_as_channels():
    torch.manual_seed(0)
    found = spread(torch.randn(4096, 8, 2, 2, dtype=torch.double) + torch.randn(4096, 8, 1, 1, dtype=torch.double))
    assert found["rank"] == pytest.approx(8, rel=0.01)
    assert found["between"] == pytest.approx((1 + 1 / 4) / 2, rel=0.05)
    assert found["common"] == pytest.approx(found["between"] / 8, rel=0.2)


def test_samples_that_are_all_alike_have_a_cosine_of_one():
    assert spread(torch.randn(1, 6, 5, 5).expand(9, 6, 5, 5))["cosine"] == pytest.approx(1)


def test_the_variants_take_the_gate_apart():
    """Averages of `average` are the gate's, those of `shape` the half gate's; e is never below 0."""
    a, b = torch.randn(3, 4, 5, 6, dtype=torch.double) + 1, torch.randn(3, 4, 5, 6, dtype=torch.double)
    means = {name: blend(a, b).mean((2, 3)) for name, blend in VARIANTS.items()}
    torch.testing.assert_close(means["average"], means["full"])
    torch.testing.assert_close(means["shape"], means["half"])
    assert (means["full"] - means["half"]).min() > 0
    torch.testing.assert_close(tempered(1.0)(a, b), gated_sum(a, b))
    torch.testing.assert_close(tempered(0.0)(a, b), (a + b) / 2)


def test_how_far_the_gates_are_from_one_half():
    """Of branches that are constants, with the norms' weights at 0, d is the difference of the norms' biases."""
    layer = make("spconv", 8, 6, 3, padding=1)
    with torch.no_grad():
        for norm in (layer.norm1, layer.norm2):
            norm.weight.zero_()
        layer.norm1.bias.fill_(0.7)
        layer.norm2.bias.fill_(-0.5)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), layer).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = gates(net, torch.randn(4, 3, 5, 5))
    assert found == {"1": pytest.approx(float(torch.sigmoid(torch.tensor(1.2))) - 0.5)}
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not net.training


def test_a_killed_run_goes_on(tiny_data, tmp_path, monkeypatch):
    settings = {"task": "segment", "size": 24, "batch": 5, "optimizer": "sgd", "lr": 0.05}
    monkeypatch.setitem(gate.NETWORKS, "unet", ("leanconv:unet?base=4&levels=1", settings, "val"))
    monkeypatch.setattr(gate, "EVERY", 2)
    recipe = Recipe.of({**settings, "data": str(tiny_data), "steps": 6, "keep": "last"})
    samples, judged = open_data(str(tiny_data), "train"), open_data(str(tiny_data), "val")
    for start in ("quiet", "0.5"):
        job = gate.Job("unet", "spconv", start, 0, 6)
        whole = gate.train(job, recipe, samples, judged, tmp_path / "whole")
        real = gate.rate_at

        def killed(step, *more, real=real):
            if step == 3:
                raise KeyboardInterrupt
            return real(step, *more)

        with monkeypatch.context() as patched:
            patched.setattr(gate, "rate_at", killed)
            with pytest.raises(KeyboardInterrupt):
                gate.train(job, recipe, samples, judged, tmp_path / "killed")
        again = gate.train(job, recipe, samples, judged, tmp_path / "killed")
        assert {**again, "cpu_seconds": 0} == {**whole, "cpu_seconds": 0}
