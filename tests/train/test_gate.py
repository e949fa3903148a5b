"""A run of a network with softmax gates: they come on by the step, and what is kept and scored has the paper's gate."""

import csv
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from leanconv.errors import BadCheckpoint, BadInput, Interrupted
from leanconv.runs import RunFolder
from leanconv.train import loop, setup
from leanconv.train.inference.score import score_run
from leanconv.train.interrupts import Stopped
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.state import State

NET = "leanconv:unet?base=4&levels=2&conv=splconv"


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(out="run", **settings):
        defaults = {"model": NET, "data": str(tiny_data), "out": str(tmp_path / out), "size": 24, "batch": 5}
        defaults |= {"device": "cpu", "threads": 1, "lr": 0.01}
        return Recipe(**defaults | ({} if "epochs" in settings else {"steps": 6}) | settings)

    return make


@pytest.fixture
def strengths(monkeypatch):
    """The gate's strength in every training step and at every evaluation; None is the paper's gate."""
    seen = {"step": [], "evaluate": []}
    real_step, real_evaluate = loop._Run._step, loop._Run._evaluate

    def strength(run):
        found = {layer.gate_strength for layer in run.schedule.gated}
        assert len({None if each is None else float(each) for each in found}) == 1
        one = found.pop()
        return None if one is None else round(float(one), 6)

    def step(self, *batch):
        seen["step"].append(strength(self))
        real_step(self, *batch)

    def evaluate(self, *arguments, **options):
        seen["evaluate"].append(strength(self))
        return real_evaluate(self, *arguments, **options)

    monkeypatch.setattr(loop._Run, "_step", step)
    monkeypatch.setattr(loop._Run, "_evaluate", evaluate)
    return seen


def same(one, other):
    a, b = load_file(one.weights), load_file(other.weights)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_gate_comes_on_in_the_first_half_of_the_steps(recipe, strengths, capsys):
    folder = fit(recipe(epochs=2))  # eight steps
    assert strengths["step"] == [0, 0.25, 0.5, 0.75, None, None, None, None]
    assert set(strengths["evaluate"]) == {None}
    assert "the gate of 8 layers comes on over the first 4 steps" in capsys.readouterr().err
    again = score_run(folder.path, split="test")  # built anew from the folder, as anybody would
    assert again.to_dict() == json.loads(folder.metrics.read_text())["test"]


def test_one_word_has_the_papers_gate_throughout(recipe, strengths, capsys):
    fit(recipe(gate_warmup=0.0))
    assert strengths["step"] == [None] * 6
    assert "gate" not in capsys.readouterr().err


def test_a_dense_network_hears_nothing_of_gates(recipe, capsys):
    fit(recipe(model="leanconv:unet?base=4&levels=2"))
    assert "gate" not in capsys.readouterr().err


def test_a_trained_network_goes_on_with_its_gate(recipe, strengths):
    folder = fit(recipe(), progress=False)
    del strengths["step"][:]
    fit(recipe("more", model=str(folder.path)), progress=False)
    assert strengths["step"] == [None] * 6


def test_weights_from_before_the_whole_gate_are_never_the_best(recipe, strengths, monkeypatch):
    """Epochs 1 and 2 score best, but theirs is another function."""
    real, scores = loop._Run._validate, iter([0.9, 0.8, 0.3, 0.5, 0.4])

    def validate(self):
        task, score = self.task, next(scores)

        class Made:
            def __getattr__(self, name):
                return getattr(task, name)

            def evaluate(self, *arguments, **options):
                found = task.evaluate(*arguments, **options)
                return Scored({column: getattr(found, column) for column in task.columns} | {task.goal: score})

        self.task = Made()
        try:
            real(self)
        finally:
            self.task = task

    class Scored:
        def __init__(self, values):
            self.__dict__ |= values

    monkeypatch.setattr(loop._Run, "_validate", validate)
    folder = fit(recipe(epochs=5, gate_warmup=9), progress=False)  # whole in the third epoch of four steps
    assert strengths["evaluate"][:3] == [round(4 / 9, 6), round(8 / 9, 6), None]
    assert json.loads(folder.metrics.read_text())["best_epoch"] == 4
    assert [float(row["dice"]) for row in csv.DictReader(folder.history.read_text().splitlines())] == [
        0.9, 0.8, 0.3, 0.5, 0.4,
    ]  # fmt: skip


@pytest.mark.parametrize("stopped", [1, 3, 4, 7])
def test_stopped_in_the_gates_start_and_resumed_it_ends_with_the_same_bits(recipe, monkeypatch, stopped):
    whole = fit(recipe("whole", epochs=3, gate_warmup=5), progress=False)
    with monkeypatch.context() as patched:

        def stop(self):
            if self.state.step == stopped:
                raise Stopped

        patched.setattr(loop._Run, "_stop_if_asked", stop)
        with pytest.raises(Interrupted):
            fit(recipe(epochs=3, gate_warmup=5), progress=False)
    resumed = fit(recipe(epochs=3, gate_warmup=5), resume=True, progress=False)
    assert same(whole, resumed)
    assert RunFolder(whole.path).history.read_text().split("\n")[0] == resumed.history.read_text().split("\n")[0]


def test_more_epochs_do_not_take_the_gate_back(recipe, strengths):
    fit(recipe(epochs=2), progress=False)
    del strengths["step"][:]
    fit(recipe(epochs=6), resume=True, progress=False)
    assert strengths["step"] == [None] * 16


def test_fewer_steps_than_its_start_still_end_with_the_gate(recipe, strengths):
    fit(recipe(gate_warmup=1000), progress=False)
    assert strengths["step"] == [round(i / 6, 6) for i in range(6)]
    assert strengths["evaluate"][-1] is None
    with pytest.raises(BadInput, match="was started with gate_warmup=1000"):
        fit(recipe(steps=8), resume=True, progress=False)


def test_a_checkpoint_whose_numbers_of_the_gate_are_wrong_is_refused(recipe, monkeypatch):
    settings = recipe(epochs=2)
    fit(settings, progress=False)
    for wrong in ("4", -1, 2.5, None):
        with monkeypatch.context() as patched:
            read = State.read

            def changed(stored, wrong=wrong, read=read):
                return read(stored | {"schedule": stored["schedule"] | {"gate_steps": wrong}})

            patched.setattr(State, "read", changed)
            with pytest.raises(BadCheckpoint, match="gate_steps"):
                fit(recipe(epochs=3), resume=True, progress=False)


def test_the_share_of_short_runs():
    net = torch.nn.Sequential()
    for steps, share, expected in ((1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 2), (10, 0.25, 2), (10, 3.0, 3), (10, 50.0, 10)):
        settings = Recipe(**{**asdict(Recipe(steps=steps)), "gate_warmup": share})
        assert setup.make_schedule(net, settings, 1, steps).gate_steps == expected
