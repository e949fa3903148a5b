"""A recipe's teacher: what is taken from its run, how the run learns and goes on, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanconv.errors import BadInput, Interrupted, LeanconvError
from leanconv.runs import RunFolder
from leanconv.train import loop, setup
from leanconv.train.distillation.guide import Guide
from leanconv.train.distillation.losses import feature_loss
from leanconv.train.loop import fit
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe
from leanconv.train.setup import check_used
from leanconv.train.twin import dense_twin

UNET = "leanconv:unet?base=4&levels=2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_data):
    settings = {"model": UNET, "data": str(tiny_data), "size": 24, "batch": 5, "steps": 8, "lr": 0.01, "light": 0.1}
    out = str(tmp_path_factory.mktemp("dense") / "run")
    return fit(Recipe(out=out, device="cpu", threads=1, mode="eager", **settings), progress=False)


@pytest.fixture
def dense(trained, tmp_path):
    return RunFolder(shutil.copytree(trained.path, tmp_path / "dense"))


@pytest.fixture
def words(dense, tmp_path):
    def make(*more, out="run"):
        words = [f"teacher={dense.path}", f"out={tmp_path / out}", "swap=depthwise_separable", "steps=3", "batch=5"]
        words += ["blockwise_steps=2", "init=project", "fit_images=512", "device=cpu", "threads=1", "mode=eager"]
        said = {word.partition("=")[0] for word in more}
        return [*(word for word in words if word.partition("=")[0] not in said), *more]

    return make


def test_what_is_not_said_is_the_teachers(words, dense):
    recipe, before = Recipe.read("recover", words()), Recipe.read(dense.recipe)
    for key in ("data", "size", "task", "classes", "light", "loss", "keep"):
        assert getattr(recipe, key) == getattr(before, key)
    assert recipe.model == recipe.teacher == str(dense.path)
    assert (recipe.steps, recipe.epochs, recipe.lr) == (3, 0, 4e-3)
    said = Recipe.read("recover", words("model=leanconv:unet", "size=16", "light=0.3"))
    assert (said.model, said.size, said.light) == ("leanconv:unet", 16, 0.3)
    dense.recipe.unlink()
    assert Recipe.read("recover", words("data=DIR")).model == str(dense.path)


def test_it_starts_from_the_trained_weights_and_writes_a_whole_run(words, dense, capsys):
    folder = fit(Recipe.read("recover", words()))
    said = capsys.readouterr().err
    assert f"taught by {dense.path}" in said
    assert "blocks, each by its own loss" in said
    metrics, theirs = json.loads(folder.metrics.read_text()), json.loads(dense.metrics.read_text())
    assert metrics["teacher"] == {
        "run": str(dense.path),
        "val": {"dice": theirs["val"]["dice"]},
        "test": {"dice": theirs["test"]["dice"]},
    }
    assert dict(folder.read_model().swaps)
    assert Recipe.read(folder.recipe) == Recipe.read("recover", words())  # with every setting of the teacher
    head = load_file(folder.weights)["head.weight"]
    assert torch.dist(head, load_file(dense.weights)["head.weight"]) < 0.1 * torch.linalg.norm(head)
    assert not any(key.startswith("teacher") for key in load_file(folder.weights))
    again = folder.load_model()
    assert again(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 24, 24)


def test_the_blocks_come_nearer_to_the_teachers(words, dense, monkeypatch):
    """The same run with more weight on the features ends with blocks nearer to the original's."""
    image, distances = torch.randn(4, 3, 24, 24), []
    alone = ("teacher_weight=0", "blockwise_steps=0")  # no other part of the loss knows the teacher
    for weight in ("0", "4"):
        asked = words(f"feature_weight={weight}", *alone, "steps=12", "lr=0.01", out=f"run{weight}")
        student, teacher = (each.load_model() for each in (fit(Recipe.read("recover", asked), progress=False), dense))
        with torch.no_grad():
            distances.append(float(feature_loss(student.encoder.level1(image), teacher.encoder.level1(image))))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_run_goes_on_bit_for_bit(words, monkeypatch, stop_at):
    """Stopped in the block-wise phase (before the first step) or after two steps."""
    whole = fit(Recipe.read("recover", words(out="whole")), progress=False)
    recipe, done = Recipe.read("recover", words("save_every=1")), []

    def stop(run):
        done.append(1)
        if (run.guide.pending and stop_at == 0) or run.state.step == stop_at > 0:
            raise loop.Stopped

    for name in ("_stop_at_once", "_stop_if_asked"):
        monkeypatch.setattr(loop._Run, name, stop)
    with pytest.raises(
        Interrupted, match="block-wise phase, which begins again" if stop_at == 0 else "step 2 of 3, saved"
    ):
        fit(recipe, progress=False)
    assert done
    monkeypatch.undo()
    if stop_at:
        monkeypatch.setattr(Guide, "reconstruct_", None)  # it is done already
    again = fit(Recipe.read(RunFolder(recipe.out).recipe), resume=True, progress=False)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_another_teacher_does_not_go_on(words, dense):
    recipe = Recipe.read("recover", words("save_every=1"))
    fit(recipe, progress=False)
    weights = load_file(dense.weights)
    weights["head.bias"] += 1
    save_file(weights, dense.weights)
    longer = words("save_every=1", "steps=6")
    with pytest.raises(BadInput, match=r"weights of teacher=.* are not what it was started with"):
        fit(Recipe.read("recover", longer), resume=True, progress=False)
    with pytest.raises(BadInput, match="was started with temperature=4"):
        fit(Recipe.read("recover", [*longer, "temperature=3"]), resume=True, progress=False)


def test_a_fit_starts_nearer_and_goes_on_bit_for_bit(words, dense, monkeypatch, capsys):
    """Before any training: closer to the teacher on images that were not looked at than the projection is."""
    teacher, image, distances = dense.load_model(), torch.randn(4, 3, 24, 24), []
    for init in ("project", "fit"):
        recipe = Recipe.read("recover", words(f"init={init}", "fit_images=20", "where=encoder.*", "blockwise_steps=0"))
        samples = setup.open_splits(recipe, "segment", silent := Reporter(active=False, visible=False))["train"]
        images = setup.calibration(recipe, samples, torch.device("cpu"))
        assert (images is None) == (init == "project")
        net, _ = setup.network(recipe, False, silent, outputs=1, before=None, calibration=images)
        with torch.no_grad():
            distances.append(float((net.eval()(image) - teacher(image)).square().mean()))
    assert distances[1] < distances[0]
    asked = ("init=fit", "fit_images=10", "where=encoder.*", "save_every=1")
    whole = fit(Recipe.read("recover", words(*asked, out="whole")))
    assert "encoder.level1.conv2" in capsys.readouterr().err
    monkeypatch.setattr(loop._Run, "_stop_if_asked", stop_at(2))
    with pytest.raises(Interrupted, match="step 2 of 3, saved"):
        fit(Recipe.read("recover", words(*asked)), progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(setup, "swap_", None)  # nothing is fitted again
    again = fit(Recipe.read("recover", words(*asked)), resume=True, progress=False)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def stop_at(step):
    def stop(run):
        if run.state.step == step:
            raise loop.Stopped

    return stop


def test_a_teacher_of_the_run_is_no_twin(words):
    with pytest.raises(BadInput, match="--also-dense: the teacher is what this run compares with"):
        dense_twin(Recipe.read("recover", words()))


def test_settings_of_no_use_are_refused(words, dense):
    with pytest.raises(BadInput, match=r'temperature=4.0 is of no use with teacher=""'):
        check_used(Recipe(model=UNET, steps=1, temperature=4.0))
    with pytest.raises(BadInput, match="init=fresh is of swapped layers"):
        check_used(Recipe(model=UNET, steps=1, init="fresh"))
    with pytest.raises(BadInput, match="fit_images=9 is of no use with init=project"):
        check_used(Recipe.read("recover", words("fit_images=9")))
    for word, message in (("init=best", "one of project, fit, fresh"), ("teacher_weight=2", "at most 1"),
                          ("temperature=0", "must be above 0"), ("feature_weight=-1", "at least 0")):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            Recipe.read("recover", words(word))


def test_a_model_of_other_layers_learns_from_outputs_alone(words, tmp_path):
    other = words("swap=", "model=leanconv:unet?base=2&levels=1")
    with pytest.raises(BadInput, match="blockwise_steps=2: no layer of the model stands for"):
        fit(Recipe.read("recover", other), progress=False)
    assert not (tmp_path / "run/recipe.toml").exists()
    other = words("swap=", "model=leanconv:unet?base=2&levels=1", "blockwise_steps=0", "steps=1")
    assert "teacher" in json.loads(fit(Recipe.read("recover", other), progress=False).metrics.read_text())


def break_nothing(folder):
    return []


def without_weights(folder):
    folder.weights.unlink()


def with_nan(folder):
    weights = load_file(folder.weights)
    weights["head.weight"][0] = float("nan")
    save_file(weights, folder.weights)


def with_other_classes(folder):
    stored = json.loads(folder.model_json.read_text())
    folder.model_json.write_text(json.dumps(stored | {"classes": ["background", "pit", "scratch"]}))


def of_another_task(folder):
    stored = json.loads(folder.model_json.read_text())
    folder.model_json.write_text(json.dumps(stored | {"task": "classify"}))


def damaged(folder):
    folder.weights.write_bytes(folder.weights.read_bytes()[:100])


@pytest.mark.parametrize(
    ("harm", "more", "message"),
    [
        (without_weights, (f"model={UNET}",), "has no weights yet .model.safetensors."),
        (without_weights, (), "has no weights yet .model.safetensors."),
        (with_nan, (f"model={UNET}",), "the teacher's weight head.weight is not finite"),
        (with_nan, (), "not finite"),
        (with_other_classes, (), "its classes are background, pit, scratch, the data's are"),
        (of_another_task, ("task=segment",), "its task is classify, this run's is segment"),
        (damaged, (), "model.safetensors"),
        (break_nothing, ("swap=", "init=project"), "is the student itself, unchanged"),
        (break_nothing, ("teacher=leanconv:unet", f"model={UNET}"), "has fresh weights and knows nothing"),
    ],
)
def test_a_teacher_that_cannot_teach_is_one_line_before_the_fit(
    words, dense, harm, more, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(setup, "swap_", None)
    recipe = Recipe.read("recover", words(*more))
    harm(dense)
    with pytest.raises(LeanconvError, match=message) as found:
        fit(recipe, progress=False)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_a_teacher_that_is_not_there(words, tmp_path, dense):
    for teacher, message in (
        (tmp_path / "nothing", "teacher=.*nothing: the run folder does not exist"),
        (tmp_path, "is no run folder"),
        ("x" * 3000, "teacher=x"),
    ):
        with pytest.raises(BadInput, match=message):
            Recipe.read("recover", [f"teacher={teacher}"])
    with pytest.raises(BadInput, match="is the run's own folder"):
        check_used(Recipe.read("recover", [f"teacher={dense.path}", f"out={dense.path}"]))
