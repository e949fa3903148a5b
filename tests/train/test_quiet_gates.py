"""A run of a network with softmax gates starts them near one half, unless one word says no, and resumes bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

from leanconv.errors import BadInput, Interrupted
from leanconv.nn import SPConv2d, SPLConv2d
from leanconv.train import loop, setup
from leanconv.train.interrupts import Stopped
from leanconv.train.loop import fit
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(out="run", operator="spconv", **settings):
        defaults = {"model": f"leanconv:unet?base=4&levels=2&conv={operator}", "data": str(tiny_data)}
        defaults |= {"out": str(tmp_path / out), "size": 24, "batch": 5, "steps": 6, "optimizer": "sgd", "lr": 0.05}
        return Recipe(**defaults | {"device": "cpu", "threads": 1} | settings)

    return make


def scales(net):
    """The inner norms' weights of every gated layer."""
    layers = [m for m in net.modules() if isinstance(m, (SPConv2d, SPLConv2d))]
    return torch.stack([(m.norm if isinstance(m, SPLConv2d) else m.norm1).weight.abs().mean() for m in layers])


@pytest.mark.parametrize("operator", ["spconv", "splconv"])
def test_a_new_network_starts_quiet_unless_one_word_says_no(recipe, operator):
    assert scales(setup.build_model(recipe(operator=operator), False)).tolist() == pytest.approx([0.1] * 8)
    usual = setup.build_model(recipe(operator=operator, quiet_gates=False), False)
    assert scales(usual).tolist() == [1.0] * 8


def test_a_trained_network_is_not_started_again(recipe):
    folder = fit(recipe(quiet_gates=False), progress=False)
    stored = load_file(folder.weights)
    again = setup.build_model(recipe("more", model=str(folder.path)), False).state_dict()
    assert all(torch.equal(again[key], value) for key, value in stored.items())


def test_a_swap_starts_its_own_layers_quiet_and_leaves_trained_ones_alone(recipe):
    """A run with usual weights in its decoder, then a second one that swaps the encoder's layers."""
    base = "leanconv:unet?base=4&levels=2"
    folder = fit(recipe(model=base, swap="splconv", where="decoder.*", quiet_gates=False), progress=False)
    stored = load_file(folder.weights)
    report = Reporter(active=False, visible=False)
    more = recipe("more", model=str(folder.path), swap="splconv", where="encoder.*", init="fresh")
    net, swaps = setup.network(more, False, report, outputs=None, before=None)
    assert swaps
    for name, layer in net.named_modules():
        if isinstance(layer, SPLConv2d):
            weight = layer.norm.weight.tolist()
            new = name in dict(swaps)
            assert weight == (pytest.approx([0.1] * len(weight)) if new else stored[f"{name}.norm.weight"].tolist())
    swapped = recipe(model=base, swap="splconv", init="fresh")
    lean = setup.network(swapped, False, report, outputs=None, before=None)[0]
    assert scales(lean).tolist() == pytest.approx([0.1] * len(scales(lean)))


def test_stopped_and_resumed_it_ends_with_the_same_bits(recipe, monkeypatch):
    whole = fit(recipe("whole"), progress=False)
    with monkeypatch.context() as patched:

        def stop(run):
            if run.state.step == 3:
                raise Stopped

        patched.setattr(loop._Run, "_stop_if_asked", stop)
        with pytest.raises(Interrupted):
            fit(recipe(), progress=False)
    with pytest.raises(BadInput, match="was started with quiet_gates=True"):
        fit(recipe(quiet_gates=False), resume=True, progress=False)
    resumed = fit(recipe(), resume=True, progress=False)
    one, other = load_file(whole.weights), load_file(resumed.weights)
    assert all(torch.equal(one[key], other[key]) for key in one)
