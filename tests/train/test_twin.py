"""The dense twin: same settings, standard convolutions, both looked at first, both resumed."""

from dataclasses import asdict

import pytest

from leanconv.errors import BadInput, Interrupted
from leanconv.runs.kinds import without
from leanconv.train import loop, twin
from leanconv.train.recipe import Recipe
from leanconv.train.twin import dense_twin, fit_both

LEAN = "leanconv:unet?base=4&levels=2&conv=splconv(alpha=0.5)"


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(**settings):
        defaults = {"model": LEAN, "data": str(tiny_data), "out": str(tmp_path / "run")}
        return Recipe(**defaults | {"size": 24, "batch": 5, "steps": 4, "device": "cpu", "threads": 1} | settings)

    return make


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, "leanconv:unet?base=4&levels=2"),
        ({"model": "leanconv:unet?conv=hetconv(part=4)"}, "leanconv:unet"),
        ({"model": "smp:Unet?classes=1", "swap": "spconv", "where": "decoder.*"}, "smp:Unet?classes=1"),
        ({"model": "leanconv:unet?conv=conv", "swap": "spconv"}, "leanconv:unet?conv=conv"),
    ],
)  # fmt: skip
def test_only_the_convolutions_differ(recipe, settings, model):
    lean = recipe(**settings)
    dense = dense_twin(lean)
    assert (dense.model, dense.swap, dense.where, dense.out) == (model, "", "", f"{lean.out}-dense")
    assert {key for key, value in asdict(dense).items() if value != getattr(lean, key)} <= {
        "model", "swap", "where", "out",
    }  # fmt: skip


@pytest.mark.parametrize("model", ["leanconv:unet", "leanconv:unet?conv=conv", "timm:resnet18"])
def test_a_dense_run_has_no_twin(recipe, model):
    with pytest.raises(BadInput, match=r"has standard convolutions already.*swap=depthwise_separable"):
        dense_twin(recipe(model=model))


@pytest.mark.parametrize(
    ("text", "less"),
    [
        ("leanconv:unet?conv=splconv(alpha=0.5, depthwise=False)&base=8", "leanconv:unet?base=8"),
        ("leanconv:unet?base=8& conv = spconv", "leanconv:unet?base=8"),
        ("leanconv:unet?conv_bias=true", "leanconv:unet?conv_bias=true"),
        ("leanconv:unet", "leanconv:unet"),
    ],
)
def test_a_reference_without_an_option(text, less):
    assert without(text, "conv") == less


def test_the_folder_of_a_run_here_has_a_name(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dense_twin(recipe(out=".")).out == f"{tmp_path}-dense"
    assert dense_twin(recipe(out="runs/a/")).out == "runs/a-dense"


def test_a_twin_in_the_way_is_seen_before_the_first_step(recipe, monkeypatch):
    lean = recipe()
    loop.fit(dense_twin(lean), progress=False)
    monkeypatch.setattr(twin, "fit", _never)
    with pytest.raises(BadInput, match="run-dense already holds a run"):
        fit_both(lean, progress=False)


def _never(*_, **__):
    raise AssertionError("nothing may be trained")


def test_stopped_in_either_it_goes_on_with_both(recipe, monkeypatch, tmp_path):
    whole, whole_dense = fit_both(recipe(out=str(tmp_path / "whole")), progress=False)
    real, steps = loop._Run._stop_if_asked, iter(range(100))

    def stop(run):
        if next(steps) in (1, 6):  # the second step of the lean run; later one of the dense run
            run.interrupts.asked = True
        real(run)

    monkeypatch.setattr(loop._Run, "_stop_if_asked", stop)
    lean = recipe(save_every=1)
    with pytest.raises(Interrupted, match=r"go on with: leanconv train \S+/run --resume --also-dense$"):
        fit_both(lean, progress=False)
    with pytest.raises(Interrupted, match=r"go on with: leanconv train \S+/run --resume --also-dense$"):
        fit_both(lean, resume=True, progress=False)
    done, dense = fit_both(lean, resume=True, progress=False)
    assert done.weights.read_bytes() == whole.weights.read_bytes()
    assert dense.weights.read_bytes() == whole_dense.weights.read_bytes()
    monkeypatch.setattr(twin, "fit", _never)  # both are finished: nothing is trained or scored again
    fit_both(lean, resume=True, progress=False)
