"""The whole way for real on a tiny run: fit, recovery with the dense network as the teacher, export; and bad data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from leanconv import recipes
from leanconv.errors import BadCheckpoint, BadInput, Interrupted
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.labelled import LabelledSubject
from leanconv.planner.lean.stages import Stages
from leanconv.planner.lean.state import State
from leanconv.planner.lean.whole import make_lean
from leanconv.runs import RunFolder
from leanconv.train.inference.score import score_run
from leanconv.train.interrupts import Stopped
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A small U-Net that has learnt to find bright rectangles."""
    out = tmp_path_factory.mktemp("lean") / "dense"
    recipe = Recipe(
        model="leanconv:unet?base=4&levels=2", data=str(tiny_data), out=str(out), size=24, batch=5, steps=40, lr=0.01,
        device="cpu", threads=1, mode="eager", light=0.0,
    )  # fmt: skip
    return fit(recipe, progress=False)


@pytest.fixture
def asked(trained, tmp_path):
    return Asked(model=str(trained.path), out=str(tmp_path / "out"), to="depthwise_separable", epochs=2, max_loss=1.0)


@pytest.fixture
def stages(way):
    """All stages are real, but for the race: whether so small a network gains is the machine's affair."""
    return Stages(race=way.stages().race)


def test_the_whole_way(trained, asked, stages, tmp_path):
    asked = replace(asked, export=str(tmp_path / "lean.onnx"))
    report = make_lean(asked, stages=stages, progress=False)
    assert not report.refusal
    found = report.stages
    assert {layer["how"] for layer in found["fit"]["layers"]} == {"fitted"}
    assert found["fit"]["params"] == found["recover"]["params"] < found["dense"]["params"]
    recovery = Recipe.read(Path(asked.out) / "stages" / "recover" / "recipe.toml")
    assert (recovery.teacher, recovery.epochs, recovery.swap) == (str(trained.path), 2, "")
    assert found["dense"]["score"] == pytest.approx(score_run(trained.path).dice)
    assert found[report.best]["score"] == pytest.approx(score_run(asked.out).dice)
    untaught = {"teacher": "", "teacher_weight": Recipe.teacher_weight, "temperature": Recipe.temperature}
    fresh = fit(replace(recovery, model="leanconv:unet?base=4&levels=2&conv=depthwise_separable", **untaught,
                        out=str(tmp_path / "fresh")), progress=False)  # fmt: skip
    assert found["recover"]["score"] > score_run(fresh.path).dice
    assert (tmp_path / "lean.onnx").is_file()
    assert "the same as the model" in str(report)


@pytest.mark.parametrize(
    ("task", "epochs", "augment"), [("classify", 1, False), ("classify", 2, True), ("segment", 1, True)]
)
def test_one_epoch_of_a_classifier_sees_its_images_as_they_are(task, epochs, augment, tmp_path):
    run = RunFolder(tmp_path / "dense")
    recipe = Recipe(model="leanconv:unet", data="images", out=str(run.path), task=task, epochs=9)
    subject = LabelledSubject.__new__(LabelledSubject)
    subject.run, subject.recipe, subject.kind = run, recipe, task
    subject.asked = Asked(model="timm:resnet18", out=str(tmp_path / "out"), to="sic", epochs=epochs)
    made = subject.recovery(RunFolder(tmp_path / "fitted"), tmp_path / "recovered")
    assert (made.augment, made.epochs, made.teacher) == (augment, epochs, str(run.path))
    subject.recipe = replace(recipe, augment=False)
    assert not subject.recovery(RunFolder(tmp_path / "fitted"), tmp_path / "recovered").augment


@pytest.mark.parametrize(
    ("error", "asked", "lr"),
    [(None, 0.0, None), (0.25, 0.0, None), (0.15, 0.0, 1e-3), (0.15, 0.02, 0.02), (0.25, 0.02, 0.02)],
)
def test_a_near_fit_takes_a_lower_rate(error, asked, lr, tmp_path):
    run = RunFolder(tmp_path / "dense")
    subject = LabelledSubject.__new__(LabelledSubject)
    subject.run, subject.kind = run, "classify"
    subject.recipe = Recipe(model="leanconv:unet", data="images", out=str(run.path), task="classify", epochs=9)
    subject.asked = Asked(model="timm:resnet18", out=str(tmp_path / "out"), to="sic", lr=asked, epochs=1)
    made = subject.recovery(RunFolder(tmp_path / "fitted"), tmp_path / "recovered", error)
    assert made.lr == (lr or recipes.read("recover")["lr"])


@pytest.fixture
def short_fits():
    """How near a fit comes is no matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanconv.convert.fit.whole.STEPS", (2, 2))
        patch.setattr("leanconv.convert.fit.fitting.STEPS", 2)
        yield


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("moves", [False, True])
def test_a_killed_recovery_goes_on_bit_for_bit(moves, asked, stages, tmp_path, monkeypatch):
    whole = replace(asked, out=str(tmp_path / "whole"))
    make_lean(whole, stages=stages, progress=False)

    def stop(run):
        run.interrupts.asked = run.state.step == 3
        if run.interrupts.asked:
            raise Stopped

    monkeypatch.setattr("leanconv.train.loop._Run._stop_if_asked", stop)
    with pytest.raises(Interrupted, match=f"leanconv lean {asked.out} --resume"):
        make_lean(asked, stages=stages, progress=False)
    assert "recover" not in State.read(asked.out).stages
    monkeypatch.undo()
    if moves:
        asked = replace(asked, out=str(Path(asked.out).rename(tmp_path / "moved")))
    make_lean(asked, stages=stages, progress=False)
    fits = [(Path(out) / "stages" / "fit" / "model.safetensors").read_bytes() for out in (whole.out, asked.out)]
    assert fits[0] == fits[1]
    ends = [(Path(out) / "model.safetensors").read_bytes() for out in (whole.out, asked.out)]
    assert ends[0] == ends[1]


def test_data_of_other_classes(asked, stages, coloured, trained, tmp_path):
    with pytest.raises(BadInput):
        make_lean(replace(asked, data=str(coloured)), stages=stages, progress=False)
    stored = json.loads(trained.model_json.read_text())
    other = RunFolder(tmp_path / "other")
    other.save_model(trained.load_model())
    other.recipe.write_text(trained.recipe.read_text())
    other.model_json.write_text(json.dumps(stored | {"classes": ["background", "scratch"]}))
    with pytest.raises(BadInput, match="was trained on background, scratch"):
        make_lean(replace(asked, model=str(other.path)), stages=stages, progress=False)


def test_a_run_without_weights(asked, stages, trained, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("recipe.toml", "model.json"):
        (bare / name).write_bytes((trained.path / name).read_bytes())
    with pytest.raises(BadCheckpoint, match="the weights cannot be read"):
        make_lean(replace(asked, model=str(bare)), stages=stages, progress=False)
    (bare / "recipe.toml").unlink()
    with pytest.raises(BadInput, match=r"has no recipe.toml"):
        make_lean(replace(asked, model=str(bare)), stages=stages, progress=False)


def test_a_model_needs_data_and_its_own_size(asked, stages):
    with pytest.raises(BadInput, match="give --data"):
        make_lean(replace(asked, model="leanconv:unet?base=4&levels=2"), stages=stages, progress=False)
    with pytest.raises(BadInput, match="--size 32"):
        make_lean(replace(asked, size=32), stages=stages, progress=False)
    with pytest.raises(BadInput, match="is no model and no run folder"):
        make_lean(replace(asked, model="runs/nothing"), stages=stages, progress=False)
    assert not Path(asked.out).exists()


@pytest.mark.usefixtures("short_fits")
def test_a_model_with_labelled_data(stages, asked, tiny_data):
    model = "leanconv:unet?base=4&levels=1"
    asked = replace(asked, model=model, data=str(tiny_data), size=24, epochs=0)
    report = make_lean(asked, stages=stages, progress=False)
    first = (Path(asked.out) / "stages" / "dense" / "model.safetensors").read_bytes()
    assert not report.refusal
    make_lean(asked, stages=stages, progress=False)  # the same weights, not fresh ones
    assert (Path(asked.out) / "stages" / "dense" / "model.safetensors").read_bytes() == first
