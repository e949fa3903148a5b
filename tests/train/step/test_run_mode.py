"""A run decides its mode once: by the recipe, by a race that leaves no trace, or as the resumed run has it."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from leanconv.errors import BadInput, Interrupted, UnknownName
from leanconv.kernels.training import available
from leanconv.train import loop, setup
from leanconv.train.interrupts import Stopped
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.state import State
from leanconv.train.step import race, run_mode
from leanconv.train.step.modes import Mode
from leanconv.train.step.run_mode import decided


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(out="run", **settings):
        defaults = {"model": "leanconv:unet?base=2&levels=1", "data": str(tiny_data), "out": str(tmp_path / out)}
        return Recipe(**defaults | {"size": 16, "batch": 5, "steps": 6, "device": "cpu", "threads": 1} | settings)

    return make


@pytest.fixture
def raced(monkeypatch):
    """Short runs are raced too, and torch.compile is a stand-in that is far faster or slower: what a test sets."""
    monkeypatch.setattr(run_mode, "FEW_STEPS", 1)
    monkeypatch.setattr(run_mode, "compile_s", lambda model: 0.0)
    monkeypatch.setattr(race, "compile_s", lambda model: 0.0)
    monkeypatch.setattr(race, "why_not_compile", lambda device: "")
    monkeypatch.setattr(run_mode, "SHARE", 1e3)
    monkeypatch.setattr(run_mode, "BUDGET_S", 3.0)
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    races, real = [], run_mode.choose

    def choose(*arguments, **options):
        races.append(real(*arguments, **options))
        return races[-1]

    monkeypatch.setattr(run_mode, "choose", choose)
    return races


def weights(folder):
    return load_file(setup.last(folder))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def mode_of(folder):
    return json.loads(folder.metrics.read_text())["mode"]


def test_what_decides():
    def of(state=None, left=10**6, **settings):
        return decided(Recipe(steps=10**6, **settings), state or State(), left)

    assert of() == ""
    assert of(left=100) == of(mode="eager") == "eager"
    assert of(mode="compile channels_last") == "channels_last compile"
    assert of(compile=True) == "compile"
    assert of(State(step=5, mode="compile")) == "compile"
    assert of(State(step=5, mode="compile"), mode="eager") == "eager"
    assert of(State(step=5)) == "eager"  # begun by a version without modes


def test_a_race_leaves_no_trace_in_the_weights(recipe, raced, capsys):
    fit(recipe("auto"))
    assert len(raced) == 1
    said = capsys.readouterr().err
    assert "training step" in said
    assert "mode=" in said
    eager = fit(recipe("eager", mode="eager"), progress=False)
    assert mode_of(eager) == "eager"
    assert len(raced) == 1
    mode = raced[0].mode
    assert mode in ("eager", "compile")  # the stand-in computes the same, in either
    auto = setup.RunFolder(recipe("auto").out)
    assert mode_of(auto) == mode
    assert same(weights(auto), weights(eager))


def test_a_resumed_run_keeps_its_mode_and_its_bits(recipe, raced, monkeypatch):
    """The first part decides for bfloat16; the second would decide otherwise, and is not asked."""
    faked = []
    monkeypatch.setattr(run_mode.Processes, "word", lambda self, own: "bfloat16")
    monkeypatch.setattr(run_mode, "_race", lambda *arguments: faked.append(1))
    real = loop._Run._step

    def step(self, *batch):
        real(self, *batch)
        if self.state.step == 4:
            raise Stopped

    monkeypatch.setattr(loop._Run, "_step", step)
    settings = recipe("stopped", steps=9)
    with pytest.raises(Interrupted):
        fit(settings, progress=False)
    monkeypatch.setattr(loop._Run, "_step", real)
    resumed = fit(settings, resume=True, progress=False)
    assert faked == [1]
    assert mode_of(resumed) == "bfloat16"
    whole = fit(recipe("whole", steps=9, mode="bfloat16"), progress=False)
    assert same(weights(resumed), weights(whole))
    other = fit(recipe("other", steps=9, mode="eager"), progress=False)
    assert not same(weights(resumed), weights(other))


@pytest.mark.skipif(available() is not None, reason=available() or "kernels")
def test_a_run_on_kernels_goes_on_with_the_same_bits(recipe, monkeypatch):
    settings = {"model": "leanconv:unet?base=2&levels=1&conv=depthwise_separable", "mode": "kernels"}
    whole = fit(recipe("whole", **settings), progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_stop_if_asked", _stop_at_3)
        with pytest.raises(Interrupted):
            fit(recipe(**settings), progress=False)
    resumed = fit(recipe(**settings), resume=True, progress=False)
    assert mode_of(resumed) == "kernels"
    assert same(weights(whole), weights(resumed))


def _stop_at_3(run):
    if run.state.step == 3:
        raise Stopped


def test_bfloat16_needs_a_word(recipe, raced):
    fit(recipe("no"), progress=False)
    assert all("bfloat16" not in row.mode or row.prepare_s is None for row in raced[0].choices)
    fit(recipe("auto", amp="auto"), progress=False)
    assert raced[1].choices["bfloat16"].prepare_s is not None


def test_where_bfloat16_is_asked_for_all_modes_compute_in_it(recipe, raced, monkeypatch):
    """They are compared with the step in float32, and the run computes as by autocast alone."""
    distances = []
    real = race._prepared
    monkeypatch.setattr(race, "_prepared", lambda trial, *rest: distances.append(trial.half) or real(trial, *rest))
    run = fit(recipe("asked", amp="bf16"), progress=False)
    rows = list(raced[0].choices)
    assert rows[0].mode == "bfloat16"
    assert all("bfloat16" in row.mode.split() for row in rows)
    assert rows[0].gradient > 1e-4
    assert not any(distances)
    assert "bfloat16" in mode_of(run).split()
    by_hand = mode_of(run).replace("bfloat16", "").strip() or "eager"
    assert same(weights(run), weights(fit(recipe("by hand", amp="bf16", mode=by_hand), progress=False)))


def test_short_runs_are_not_raced(recipe, monkeypatch):
    monkeypatch.setattr(run_mode, "_race", lambda *arguments: pytest.fail("raced"))
    assert mode_of(fit(recipe(), progress=False)) == "eager"


def test_a_run_in_which_nothing_would_be_tried_prints_no_table(recipe, monkeypatch, capsys):
    monkeypatch.setattr(run_mode, "FEW_STEPS", 1)
    monkeypatch.setattr(run_mode, "uncompiled", lambda model, bfloat16: [Mode()])
    fit(recipe())
    assert "training step" not in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["fast", "compile; rm", 3, ["eager"], " "])
def test_a_mode_that_is_none_is_refused(recipe, mode):
    if isinstance(mode, str):
        with pytest.raises((UnknownName, BadInput), match="mode"):
            recipe(mode=mode)
    with pytest.raises(BadInput, match="mode="):
        State.read(dict.fromkeys(("step", "loss_steps", "best_epoch"), 0) | {
            "loss_sum": 0.0, "seconds": 0.0, "best": -1.0, "history": [], "mode": mode,
        })  # fmt: skip


def test_a_mode_that_cannot_run_here_is_one_line(recipe, monkeypatch):
    """A run begun where there is a compiler, gone on with where there is none."""
    monkeypatch.setattr(run_mode, "why_not_compile", lambda device: "torch.compile needs a C++ compiler")
    with pytest.raises(BadInput, match=r"^mode=compile cannot run here: .* C\+\+ compiler; or say mode=eager$"):
        fit(recipe(mode="compile"), progress=False)


def test_kernels_that_cannot_run_here_are_one_line(recipe, monkeypatch):
    monkeypatch.setattr(run_mode, "why_not_kernels", lambda device: "no C compiler builds them")
    with pytest.raises(BadInput, match=r"^mode=kernels cannot run here: no C compiler builds them; or say mode=eager$"):
        fit(recipe(mode="kernels"), progress=False)


def test_settings_that_contradict_each_other(recipe):
    with pytest.raises(BadInput, match="compile=true, mode=eager: say mode=compile"):
        recipe(compile=True, mode="eager")
    assert recipe(compile=True, mode="compile bfloat16").mode == "compile bfloat16"


@pytest.mark.parametrize("main", [False, True])
def test_one_process_decides_and_all_follow(main, monkeypatch):
    """The others neither race nor look at their own clocks."""
    asked = []

    class Two:
        count = 2

        def __init__(self):
            self.main = main

        def word(self, own):
            asked.append(own)
            return "bfloat16"

    class Fast:
        mode = "bfloat16"

    monkeypatch.setattr(run_mode, "_race", lambda *arguments: Fast() if main else pytest.fail("raced"))
    conv, state = torch.nn.Conv2d(3, 4, 3), State()
    report = SimpleNamespace(racing=lambda mode, share: None)
    forward = run_mode.run_forward(
        Recipe(steps=10**6), state, conv, 10**6, lambda: pytest.fail("not needed"), Two(), report, lambda *part: None
    )
    assert asked == ["bfloat16" if main else "eager"]
    assert forward.mode.name == state.mode == "bfloat16"
