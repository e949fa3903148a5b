"""`swap`, `where` and `pretrained` of a recipe: any model is made lean, starts from weights, and loads again."""

import copy

import pytest
import torch
from torch import nn

from leanconv.convert import plan
from leanconv.errors import BadInput, UnknownName
from leanconv.nn import DepthwiseSeparableConv2d, SPConv2d
from leanconv.runs import RunFolder, kinds, load
from leanconv.train import setup
from leanconv.train.loop import fit
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe
from leanconv.train.setup import check_used
from leanconv.train.swapped import swap_

UNET = "leanconv:unet?base=4&levels=2"


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(**settings):
        defaults = {"model": UNET, "data": str(tiny_data), "out": str(tmp_path / "run"), "swap": "depthwise_separable"}
        return Recipe(**defaults | {"size": 24, "batch": 5, "steps": 4, "device": "cpu", "threads": 1} | settings)

    return make


def lean_layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, DepthwiseSeparableConv2d)}


def test_it_swaps_what_the_plan_says(recipe):
    model = load(UNET)
    expected = plan(model, torch.zeros(1, 3, 24, 24), to="depthwise_separable", where="decoder.*").swapped
    assert expected
    found = swap_(model, recipe(where="decoder.*"))
    assert {each.name for each in found.swapped} == {each.name for each in expected} == lean_layers(model)
    assert not swap_(model, recipe(swap=""))


def test_a_run_loads_again_and_its_plan_is_shown(recipe, capsys):
    folder = fit(recipe(where="decoder.*"))
    shown = capsys.readouterr().err
    assert "swap   depthwise_separable, layer by layer:" in shown
    assert "4 of 13 convolutions change" in shown
    stored = dict(folder.read_model().swaps)
    assert set(stored.values()) == {"depthwise_separable"}
    model = load(folder.path)
    assert lean_layers(model) == set(stored)
    assert all(name.startswith("decoder.") for name in stored)


def test_a_swapped_run_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch):
    whole = fit(recipe(out=str(tmp_path / "whole")), progress=False)
    first = recipe(save_every=1)
    monkeypatch.setattr("leanconv.train.loop._Run._stop_if_asked", _stop_at(2))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(first, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(setup, "swap_", _never)  # model.json says what was swapped
    again = fit(first, resume=True, progress=False)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_quiet_gates_of_swapped_layers_go_on_bit_for_bit(recipe, tmp_path, monkeypatch):
    """The factor on the gradients of their norms is of the run, not of its second process alone."""
    settings = {"swap": "spconv", "where": "decoder.*", "optimizer": "sgd", "lr": 0.05, "save_every": 1}
    whole = fit(recipe(out=str(tmp_path / "whole"), **settings), progress=False)
    monkeypatch.setattr("leanconv.train.loop._Run._stop_if_asked", _stop_at(2))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(recipe(**settings), progress=False)
    monkeypatch.undo()
    again = fit(recipe(**settings), resume=True, progress=False)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_a_swap_starts_its_own_gates_quiet_and_leaves_trained_ones(recipe, tmp_path):
    first = fit(recipe(out=str(tmp_path / "first"), swap="spconv", where="encoder.*"), progress=False)
    trained = first.load_model().state_dict()
    more = recipe(model=str(first.path), swap="spconv", where="decoder.*", init="fresh")
    net, swaps = setup.network(more, False, Reporter(active=False, visible=False), outputs=None, before=None)
    new = {name for name, _ in swaps}
    assert new
    for name, module in net.named_modules():
        if isinstance(module, SPConv2d):
            weight = module.norm1.weight
            expected = torch.full_like(weight, 0.1) if name in new else trained[f"{name}.norm1.weight"]
            torch.testing.assert_close(weight.detach(), expected)


def _stop_at(step):
    def stop(run):
        if run.state.step == step:
            raise RuntimeError("stopped")

    return stop


def _never(*_):
    raise AssertionError("a resumed run plans nothing")


def test_a_trained_run_is_swapped_and_keeps_its_own_swaps(recipe, tmp_path):
    first = fit(recipe(where="decoder.*"), progress=False)
    second = fit(recipe(model=str(first.path), out=str(tmp_path / "second"), where="encoder.level2.*"), progress=False)
    assert lean_layers(load(second.path)) > lean_layers(load(first.path))
    with pytest.raises(BadInput, match=r"was started with swap=depthwise_separable"):
        fit(recipe(model=str(first.path), out=str(second.path), swap="", steps=9), resume=True, progress=False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"swap": "splcnv"}, UnknownName, "did you mean 'splconv'"),
        ({"swap": "hetconv(parts=4)"}, UnknownName, "hetconv has no option 'parts'"),
        ({"swap": "", "where": "decoder.*"}, BadInput, "is of no use without swap"),
    ],
)
def test_what_no_model_could_have_is_refused_first(recipe, settings, error, message):
    with pytest.raises(error, match=message):
        check_used(recipe(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "nothing.*"}, "matches no convolution"),
        ({"swap": "xsepconv"}, r"swap=xsepconv changes none of 13 convolutions .*dense"),
        ({"pretrained": True}, "has no published weights: take a model of timm or smp"),
    ],
)
def test_what_this_model_cannot_have_leaves_no_run(recipe, settings, message):
    asked = recipe(**settings)
    with pytest.raises(BadInput, match=message):
        fit(asked, progress=False)
    assert not RunFolder(asked.out).recipe.exists()


def test_weights_are_fetched_when_said_and_never_again(recipe, monkeypatch):
    seen = []

    def build(name, options):
        seen.append(options.get("pretrained", False))
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1))

    monkeypatch.setitem(kinds._BUILDERS, "smp", build)
    fit(recipe(model="smp:Unet", swap="", out=recipe().out + "-fresh"), progress=False)
    assert seen == [False]
    seen.clear()
    asked = recipe(model="smp:Unet", pretrained=True, where="1", save_every=1)
    folder = fit(asked, progress=False)
    assert seen == [True]
    load(folder.path)
    fit(asked, resume=True, progress=False)
    assert seen == [True, False, False]


def test_a_note_is_said_once(capsys):
    notes = set()
    for _ in range(2):
        report = Reporter(active=True, visible=True, notes=notes)
        report.note("note   the same")
        report.note("note   the same")
    assert capsys.readouterr().err.count("the same") == 1


def test_swapped_gates_start_quiet_once_and_a_resumed_run_goes_the_same_way(recipe, tmp_path, monkeypatch):
    """The branches of new SPConvs alone are scaled, by 0.1. A killed run that goes on ends in the same weights."""
    settings = {"swap": "spconv", "where": "decoder.*", "optimizer": "sgd", "lr": 0.1, "init": "fresh"}
    for quiet, scale in ((True, 0.1), (False, 1.0)):
        for asked in (settings, {"model": f"{UNET}&conv=spconv", "swap": ""}):
            asked = recipe(quiet_gates=quiet, **asked)
            assert _scales(
                setup.network(asked, False, Reporter(active=False, visible=False), outputs=1, before=None)[0]
            ) == {scale}
    whole = fit(recipe(out=str(tmp_path / "whole"), **settings), progress=False)
    monkeypatch.setattr("leanconv.train.loop._Run._stop_if_asked", _stop_at(2))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(recipe(save_every=1, **settings), progress=False)
    monkeypatch.undo()
    again = fit(recipe(save_every=1, **settings), resume=True, progress=False)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_gates_of_a_trained_network_stay_where_its_weights_put_them(recipe, tmp_path):
    first = fit(recipe(out=str(tmp_path / "first"), swap=""), progress=False)
    nets = []
    for quiet in (True, False):
        more = recipe(model=str(first.path), swap="spconv", where="decoder.*", quiet_gates=quiet)
        torch.manual_seed(0)
        nets.append(setup.network(more, False, Reporter(active=False, visible=False), outputs=1, before=None)[0])
    layer = next(each for each in nets[0].modules() if isinstance(each, SPConv2d))
    if not copy.deepcopy(layer).project_(nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)):
        pytest.skip("SPConv takes nothing over of dense weights")
    for name, tensor in nets[0].state_dict().items():
        torch.testing.assert_close(tensor, nets[1].state_dict()[name], rtol=0, atol=0)


def _scales(net):
    """The weights of all norms inside SPConvs."""
    layers = [each for each in net.modules() if isinstance(each, SPConv2d)]
    assert layers
    norms = [norm for each in layers for norm in (each.norm1, each.norm2) if isinstance(norm, nn.BatchNorm2d)]
    return {round(value, 6) for norm in norms for value in norm.weight.tolist()}
