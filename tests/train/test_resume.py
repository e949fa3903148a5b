"""A run that was killed, stopped or cut anywhere ends with the weights, bit for bit, of one that never was."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from leanconv.errors import BadCheckpoint, BadInput, Interrupted
from leanconv.runs import RunFolder
from leanconv.train import checkpoint, loop, setup
from leanconv.train.inference.score import read_metrics
from leanconv.train.interrupts import Interrupts, Stopped
from leanconv.train.loop import fit
from leanconv.train.optimizer import make_optimizer
from leanconv.train.recipe import Recipe

# Batch statistics, dropout and shared random numbers: everything that a careless checkpoint forgets.
NET = """
import torch
from torch import nn

def net():
    pair = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3)]
    return nn.Sequential(*pair, nn.Conv2d(8, 1, 3, padding=1))
"""

# Kills its own process, without warning, in the step (or at the write) with the given number.
KILLED = """
import os, signal, sys
from leanconv import files
from leanconv.train import loop
from leanconv.train.recipe import Recipe

where, number, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
count = 0

def die():
    global count
    count += 1
    if count == number:
        os.kill(os.getpid(), signal.SIGKILL)

if where == "step":
    real = loop.make_optimizer
    def make(*arguments):
        optimizer = real(*arguments)
        optimizer.register_step_pre_hook(lambda *_: die())
        return optimizer
    loop.make_optimizer = make
else:
    real_fsync = os.fsync
    def fsync(handle):
        die()
        real_fsync(handle)
    os.fsync = fsync
loop.fit(Recipe.read(path), progress=False, trust_code=True)
"""


def recipes(root, data):
    """`make(name, **settings)`: a recipe whose run goes to that folder below `root`."""
    (root / "net.py").write_text(NET)

    def make(out, **settings):
        defaults = {"model": f"{root / 'net.py'}:net", "data": str(data), "out": str(root / out)}
        defaults |= {"size": 24, "batch": 5, "steps": 18, "save_every": 3, "device": "cpu", "threads": 1, "zoom": 1.2}
        return Recipe(**defaults | settings)

    return make


@pytest.fixture
def recipe(tiny_data, tmp_path):
    return recipes(tmp_path, tiny_data)


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """A run that nothing stopped; read it, do not write."""
    make = recipes(tmp_path_factory.mktemp("whole"), tiny_data)
    return fit(make("whole", save_every=0), progress=False, trust_code=True)


def final(folder):
    """Best weights, and the last ones with the optimizer's state."""
    return load_file(folder.weights), load_file(setup.last(folder))


def assert_same_run(a, b):
    for one, other in zip(final(a), final(b), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows = [[row.rsplit(",", 1)[0] for row in each.history.read_text().splitlines()] for each in (a, b)]
    assert rows[0] == rows[1]  # all but the seconds
    scores = [{k: v for k, v in read_metrics(each).items() if k != "seconds"} for each in (a, b)]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "write"])
def test_killed_at_a_random_place(recipe, tmp_path, where):
    """SIGKILL inside a step after the backward pass, or inside the writing of a file (of the first eleven)."""
    number = random.SystemRandom().randint(1, 18 if where == "step" else 11)
    options = {"channels_last": True} if where == "step" else {"optimizer": "sgd", "lr": 0.01}
    settings = recipe("killed", **options)
    path = settings.write(tmp_path / "killed.toml")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(number), str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    started = RunFolder(settings.out).recipe.is_file()
    resumed = fit(settings, resume=started, progress=False, trust_code=True)
    assert not [path for path in resumed.path.rglob("*") if path.name.startswith(".") or path.suffix == ".lock"]
    whole = fit(recipe("whole", **options), progress=False, trust_code=True)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(recipe, whole, monkeypatch, stop):
    settings, real = recipe("stopped", save_every=0), loop._Run._step

    def step(self, *batch):
        real(self, *batch)
        if self.state.step == 6:
            os.kill(os.getpid(), stop)

    before = signal.getsignal(stop)
    monkeypatch.setattr(loop._Run, "_step", step)
    with pytest.raises(Interrupted, match=r"stopped at step 6 of 18, saved; go on with: leanconv train \S+ --resume"):
        fit(settings, progress=False, trust_code=True)
    assert signal.getsignal(stop) == before
    monkeypatch.undo()
    resumed = fit(settings, resume=True, progress=False, trust_code=True)
    assert_same_run(resumed, whole)


def test_stopped_during_a_validation(recipe, whole, monkeypatch):
    settings, real = recipe("stopped", save_every=0), loop.Reporter.validating

    def validating(self, done, images):
        real(self, done, images)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.Reporter, "validating", validating)
    with pytest.raises(Interrupted, match="stopped at step 4 of 18, saved"):
        fit(settings, progress=False, trust_code=True)
    monkeypatch.undo()
    resumed = fit(settings, resume=True, progress=False, trust_code=True)
    assert_same_run(resumed, whole)


@pytest.fixture
def ctrl_c_ends():
    """SIGINT as a terminal gives it; a job that a script started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_an_impatient_users_run(monkeypatch, ctrl_c_ends):
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the launcher's copy of the same Ctrl-C
        assert interrupts.asked
        monkeypatch.setattr("leanconv.train.interrupts.PATIENCE_S", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_finished_run_resumes_to_itself(recipe):
    folder = fit(recipe("done"), progress=False, trust_code=True)
    before = folder.weights.read_bytes(), folder.history.read_text()
    again = fit(recipe("done"), resume=True, progress=False, trust_code=True)
    assert (again.weights.read_bytes(), again.history.read_text()) == before


def test_more_epochs_than_at_first(recipe):
    fit(recipe("longer"), progress=False, trust_code=True)
    longer = fit(recipe("longer", steps=22), resume=True, progress=False, trust_code=True)
    assert read_metrics(longer)["steps"] == 22


def test_fewer_steps_than_done_or_other_data_are_refused(recipe, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    folder = fit(recipe("run", data=str(data)), progress=False, trust_code=True)
    before = folder.recipe.read_text()
    with pytest.raises(BadInput, match=r"has done 18 steps \(4\.5 epochs\), more than the 4 asked for"):
        fit(recipe("run", data=str(data), steps=4), resume=True, progress=False, trust_code=True)
    for kind in ("images", "masks"):
        (data / "train" / kind / "7.png").unlink()
    with pytest.raises(BadInput, match=r"started with 20 training images, .* now has 19"):
        fit(recipe("run", data=str(data), steps=30), resume=True, progress=False, trust_code=True)
    assert folder.recipe.read_text() == before


def test_stopped_while_the_best_weights_are_scored(recipe, whole, monkeypatch):
    """They are in the model's place by then, and must not be taken for the last ones."""
    settings, real = recipe("stopped", save_every=0), loop._Run._evaluate

    def evaluate(self, measure, split, **options):
        scores = real(self, measure, split, **options)
        if measure == self.task.choose:
            raise Stopped
        return scores

    real_load = loop.load_weights

    def load(net, path):  # weights that differ from the last ones for certain
        real_load(net, path)
        with torch.no_grad():
            next(net.parameters()).add_(1)

    monkeypatch.setattr(loop._Run, "_evaluate", evaluate)
    monkeypatch.setattr(loop, "load_weights", load)
    with pytest.raises(Interrupted, match="stopped at step 18 of 18, saved"):
        fit(settings, progress=False, trust_code=True)
    monkeypatch.undo()
    resumed = fit(settings, resume=True, progress=False, trust_code=True)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("damage", ["cut", "pickle", "other model", "no header"])
def test_a_damaged_checkpoint_is_one_clear_line(recipe, tmp_path, damage):
    settings = recipe("run")
    folder = fit(settings, progress=False, trust_code=True)
    path = setup.last(folder)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"model": torch.ones(1)}, path)
    elif damage == "no header":
        from safetensors.torch import save_file

        save_file({"model.0.weight": torch.ones(1)}, path)
    else:
        other = torch.nn.Conv2d(1, 1, 1)
        checkpoint.save(path, checkpoint.State(3), other, make_optimizer(other, settings))
    with pytest.raises(BadCheckpoint, match=r"is no checkpoint|belongs to another model") as caught:
        fit(settings, resume=True, progress=False, trust_code=True)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_optimizer_state_keeps_its_layout(tmp_path):
    """A channels_last momentum that comes back contiguous would be summed in another order."""
    recipe = Recipe(steps=1)
    net = torch.nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net, recipe)
    net(torch.randn(2, 8, 9, 9)).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path / "s.safetensors", checkpoint.State(1), net, optimizer)
    fresh = torch.nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    other = make_optimizer(fresh, recipe)
    state, scaler = checkpoint.load(tmp_path / "s.safetensors", fresh, other)
    assert (state.step, scaler) == (1, {})
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key])
            assert mine[key].stride() == theirs[key].stride()
