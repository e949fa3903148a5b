"""A checkpoint that somebody else wrote, or that is half of one: one line, and nothing was trained or written."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from leanconv.errors import BadCheckpoint, BadInput, LeanconvError
from leanconv.runs import RunFolder
from leanconv.train import checkpoint, loop, setup
from leanconv.train.loop import fit
from leanconv.train.optimizer import make_optimizer
from leanconv.train.recipe import Recipe
from leanconv.train.resume import check_resumed
from leanconv.train.tasks.task import make_task


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A run of 7 steps, 4 an epoch; its recipe asks for more when it is resumed."""
    recipe = Recipe(
        model="leanconv:unet?base=2&levels=1",
        data=str(tiny_data),
        out=str(tmp_path_factory.mktemp("runs") / "run"),
        size=16,
        batch=5,
        steps=7,
        device="cpu",
        threads=1,
    )
    return fit(recipe, progress=False)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of one's own, with what changes its checkpoint."""
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))

    def write(change):
        path = setup.last(folder)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["leanconv"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        changed = change(header, tensors)
        header = header if changed is None else changed
        try:
            save_file(tensors, path, {"leanconv": header if isinstance(header, str) else json.dumps(header)})
        except KeyError as dtype:  # safetensors 0.6
            pytest.skip(f"this version of safetensors writes no {dtype}")

    return folder, write


def resume(folder, **settings):
    recipe = Recipe.read(folder.recipe, [f"out={folder.path}", *(f"{k}={v}" for k, v in settings.items())])
    return fit(recipe, resume=True, progress=False)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.path.rglob("*")) if p.is_file() and "events" not in p.parts}


def entry(key, value):
    def change(header, tensors):
        header["state"][key] = value

    return pytest.param(change, key, id=f"{key}={str(value)[:30]}")


def row(place, key, value):
    def change(header, tensors):
        header["state"]["history"][place][key] = value

    return pytest.param(change, "history", id=f"row {place} {key}={str(value)[:30]}")


def lacks(key):
    def change(header, tensors):
        del header["state"][key]

    return pytest.param(change, key, id=f"no {key}")


def whole(value, says):
    return pytest.param(lambda header, tensors: value, says, id=f"header {str(value)[:30]}")


def part(key, value):
    def change(header, tensors):
        header[key] = value

    return pytest.param(change, "header" if key != "state" else "state", id=f"{key}: {str(value)[:30]}")


def tensor(name, made, says="optimizer"):
    def change(header, tensors):
        if made is None:
            del tensors[name]
        else:
            tensors[name] = made(tensors.get(name))

    return pytest.param(change, says, id=f"{name}: {says}")


NAN, HUGE = float("nan"), 10**400
STATES = [
    *(entry("step", value) for value in ("abc", -5, 6.5, True, None, [7], NAN, HUGE, 8, 3, 0)),
    *(entry("loss_steps", value) for value in ("1", -1, 2, 0.5, None)),
    *(entry("loss_sum", value) for value in ("x", NAN, float("inf"), None, HUGE, True)),
    *(entry("seconds", value) for value in ("x", -1.0, NAN, HUGE)),
    *(entry("best", value) for value in ("x", NAN, -2, 0.123, None)),
    *(entry("best_epoch", value) for value in ("x", -1, 9, 0, 1.0)),
    *(entry("history", value) for value in ([1], "x", {}, None, [[]], [{}], [], [{"epoch": 1, "step": 4}])),
    *(entry("images", value) for value in ("x", -1, 19, 20.0)),
    *(entry("schedule", value) for value in ([], {"steps": 1}, {"steps": 6, "seed": 0, "loss_sum": 0.0},
                                             {"steps": 7, "seed": 1, "loss_sum": 0.0})),
    *(entry("processes", value) for value in ("2", -1)),
    entry("besides", 1),
    *(row(0, key, value) for key, value in (("step", 9), ("step", "4"), ("step", 4.0), ("epoch", 0), ("loss", NAN),
                                            ("dice", "x"), ("dice", HUGE), ("lr", None), ("other", 1))),
    row(1, "step", 4),
    row(1, "step", 6),
    row(0, "epoch", 2),
    pytest.param(lambda h, t: [r.update(dice=r["dice"] + 9 * (r["dice"] != h["state"]["best"]))
                               for r in h["state"]["history"]] and None, "larger dice", id="the best is not the best"),
    *(lacks(key) for key in ("step", "loss_sum", "loss_steps", "seconds", "best", "best_epoch", "history")),
    *(whole(value, "is no checkpoint") for value in ("", "{", "3", "[]", "null", "{}", "[" * 100_000, '{"state": {}}')),
    *(part("state", value) for value in (3, None, [], "x")),
    *(part("optimizer", value) for value in (3, None, [], "x")),
    *(part("scaler", value) for value in (3, None, "x")),
    pytest.param(lambda h, t: h.update(scaler={"scale": 1.0}), "scaler", id="scaler of one entry"),
    pytest.param(lambda h, t: h["optimizer"].update({"optimizer.x.step": 1}), "no entry 'x.step'", id="index x"),
    pytest.param(lambda h, t: h["optimizer"].update({"optimizer.99.step": 1}), "no entry '99.step'", id="index 99"),
    pytest.param(lambda h, t: h["optimizer"].update({"optimizer.0.evil": 1}), "no entry '0.evil'", id="another key"),
]  # fmt: skip
TENSORS = [
    tensor("optimizer.0.exp_avg", lambda t: t[:1].clone()),
    tensor("optimizer.0.exp_avg", lambda t: t.double()),
    tensor("optimizer.0.exp_avg", lambda t: t.fill_(NAN)),
    tensor("optimizer.0.exp_avg_sq", lambda t: t.fill_(-1.0), "is below 0"),
    tensor("optimizer.0.exp_avg_sq", None),
    tensor("optimizer.0.step", None),
    tensor("optimizer.0.step", lambda t: torch.tensor(8.0)),
    tensor("optimizer.0.step", lambda t: torch.tensor(-1.0)),
    tensor("optimizer.0.step", lambda t: torch.tensor(NAN)),
    tensor("optimizer.0.step", lambda t: torch.ones(2)),
    tensor("optimizer.0.step", lambda t: torch.tensor(1j)),
    tensor("optimizer.0.other", lambda t: torch.ones(1)),
    tensor("model.head.weight", None, "it lacks head.weight"),
    tensor("model.head.weight", lambda t: t.half(), "head.weight is float16"),
    tensor("model.head.weight", lambda t: t[:, :1].clone(), "other sizes head.weight"),
    tensor("model.head.weight", lambda t: t.fill_(NAN), "head.weight is not finite"),
    tensor("model.encoder.level1.norm1.running_var", lambda t: t.fill_(NAN), "running_var is not finite"),
    tensor("model.more", lambda t: torch.ones(1), "it has besides more"),
    pytest.param(
        lambda h, t: [t.pop(key) for key in [*t] if key.startswith("optimizer.")] and None, "no entries", id="emptied"
    ),
]


class Samples(list):
    """As many training images as the run had."""

    classes = ("background", "defect")


@pytest.mark.parametrize(("change", "says"), STATES + TENSORS)
def test_every_entry_is_checked(run, change, says):
    folder, write = run
    write(change)
    recipe, net = Recipe.read(folder.recipe), folder.build_model()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    task, loaded = make_task(recipe, "segment", Samples.classes), []

    def read():
        state, _ = checkpoint.load(setup.last(folder), net, make_optimizer(net, recipe))
        loaded.append(state)
        check_resumed(state, recipe, folder, net, Samples(range(20)), task, 9, 4)

    with pytest.raises((BadCheckpoint, BadInput)) as caught:
        read()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert loaded or all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [STATES[0], STATES[1], entry("best", NAN), entry("loss_steps", 2), TENSORS[0],
     entry("schedule", {"steps": 7, "seed": 0, "loss_sum": "x"})],
)  # fmt: skip
def test_nothing_is_trained_from_it_and_nothing_written(run, change, says, monkeypatch):
    folder, write = run
    write(change)
    before = contents(folder)
    monkeypatch.setattr(loop._Run, "_step", lambda *_: pytest.fail("it was trained on"))
    with pytest.raises((BadCheckpoint, BadInput)) as caught:
        resume(folder, steps=9)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert contents(folder) == before


@pytest.mark.parametrize("words", [[], ["optimizer=sgd", "momentum=0"], ["optimizer=muon"]])
def test_what_the_run_wrote_itself_is_taken(run, tiny_data, tmp_path, words):
    """Also of an optimizer that keeps nothing, and the first version's, which did not write down some entries."""
    folder, write = run
    if words:
        recipe = Recipe.read(folder.recipe, [f"out={tmp_path / 'other'}", *words])
        folder = fit(recipe, progress=False)
    else:
        write(
            lambda header, tensors: [header["state"].pop(key) for key in ("images", "schedule", "processes")] and None
        )
    assert resume(folder, steps=9).metrics.is_file()


@pytest.mark.parametrize("what", ["folder", "pipe", "link to nowhere"])
def test_what_stands_in_its_place_is_no_beginning(run, what):
    """A run whose checkpoint is no file began anew over its own weights."""
    folder, _ = run
    path = setup.last(folder)
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nowhere": lambda: path.symlink_to("/none")}[what]()
    before = contents(folder)
    with pytest.raises(LeanconvError, match="no checkpoint"):
        resume(folder, steps=9)
    assert contents(folder) == before


def test_weights_without_a_checkpoint_are_not_trained_over(run):
    folder, _ = run
    shutil.rmtree(folder.last)
    before = contents(folder)
    with pytest.raises(BadInput, match=r"has model\.safetensors, history\.csv, metrics\.json but no checkpoint"):
        resume(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("left", [None, b"", b"no weights"])
def test_best_weights_that_are_gone_are_missed_before_the_training(run, monkeypatch, left):
    """Else the run would train to its end, and fail where it scores them."""
    folder, write = run

    def first_was_best(header, tensors):
        state = header["state"]
        state["history"][0]["dice"] = state["best"] = 0.99
        state["best_epoch"] = 1

    write(first_was_best)
    folder.weights.unlink()
    if left is not None:
        folder.weights.write_bytes(left)
    before = contents(folder)
    monkeypatch.setattr(loop._Run, "_step", lambda *_: pytest.fail("it was trained on"))
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: "):
        resume(folder, steps=9)
    assert contents(folder) == before


@pytest.mark.parametrize("stage", ["weights", "history"])
def test_killed_between_the_files_of_one_validation(run, monkeypatch, stage, tmp_path):
    """The checkpoint is first; what comes after it is done again, and scores of older weights are gone."""
    folder, _ = run
    older = RunFolder(shutil.copytree(folder.path, tmp_path / "older"))
    changed = older.load_model()
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    best = folder.weights.read_bytes()
    if stage == "weights":
        folder.save_model(changed)
    folder.history.write_text(folder.history.read_text().splitlines()[0] + "\n")
    state, _ = checkpoint.load(setup.last(folder), folder.build_model(), make_optimizer(changed, Recipe(steps=1)))
    monkeypatch.setattr(loop._Run, "train", lambda self, again="": None)
    resume(folder)
    if state.best_step == state.step:
        assert folder.weights.read_bytes() == best
        assert folder.metrics.is_file() == (stage == "history")
    assert folder.history.read_text() == older.history.read_text()


def test_scores_go_before_the_weights_that_they_are_of(run, monkeypatch):
    """A longer run that is killed on its way: nobody reads the old scores beside the new weights."""
    folder, _ = run
    real = loop.keep_best

    def killed(folder, net):
        real(folder, net)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "keep_best", killed)
    before = folder.weights.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        resume(folder, steps=40)
    assert folder.weights.read_bytes() != before
    assert not folder.metrics.exists()
