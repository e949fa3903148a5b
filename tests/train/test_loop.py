"""The training loop: it learns, it repeats itself, and what goes wrong costs nothing that was there before."""

import csv
import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from leanconv.errors import BadInput, Diverged, UntrustedCode
from leanconv.runs import RunFolder
from leanconv.train import checkpoint, loop, setup
from leanconv.train.data.samples import open_data
from leanconv.train.inference.score import score_run, stored_threshold
from leanconv.train.loop import fit
from leanconv.train.optimizer import make_optimizer, rate_at
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.segment import Segmentation, soft_dice

UNET = "leanconv:unet?base=4&levels=2"


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(**settings):
        defaults = {"model": UNET, "data": str(tiny_data), "out": str(tmp_path / "run"), "size": 24, "batch": 5}
        defaults |= {"device": "cpu", "threads": 1, "lr": 0.01}
        return Recipe(**defaults | ({} if settings.keys() & {"steps", "epochs"} else {"steps": 6}) | settings)

    return make


def weights(folder):
    return load_file(RunFolder(folder).weights)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_and_leaves_a_whole_run_folder(recipe, capsys):
    settings = recipe(epochs=25, eval_every=5, warmup=2)
    folder = fit(settings)
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["val"]["dice"] > 0.9
    assert metrics["test"]["image_dice"] > 0.85
    assert metrics["steps"] == 100
    assert Recipe.read(folder.recipe) == settings
    assert json.loads(folder.model_json.read_text())["reference"] == UNET
    rows = list(csv.DictReader(folder.history.read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [5, 10, 15, 20, 25]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 2
    assert metrics["best_epoch"] == int(max(rows, key=lambda row: float(row["dice"]))["epoch"])
    assert list(folder.events.glob("events.out.tfevents.*"))
    said = capsys.readouterr().err
    assert "7.549k parameters" in said
    assert "20 train, 6 val, 5 test" in said
    assert said.count("epoch ") == 5
    # what the folder holds is what was scored
    again = score_run(folder.path, split="test")
    assert again.to_dict() == metrics["test"]
    assert stored_threshold(folder) == metrics["threshold"] == again.threshold


def test_the_same_seed_gives_the_same_weights(recipe, tmp_path):
    runs = [
        weights(fit(recipe(out=str(tmp_path / name), seed=seed), progress=False))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_worker_processes_change_nothing(recipe, tmp_path):
    runs = [
        weights(fit(recipe(out=str(tmp_path / str(n)), workers=n, zoom=1.2, defect_crop=0.5), progress=False))
        for n in (0, 2)
    ]
    assert same(*runs)


def test_a_run_is_not_overwritten(recipe, tmp_path):
    folder = fit(recipe(), progress=False)
    before = folder.weights.read_bytes()
    with pytest.raises(BadInput, match="already holds a run: add --resume"):
        fit(recipe(seed=5))
    with pytest.raises(BadInput, match="was started with model=leanconv:unet"):
        fit(recipe(model="leanconv:unet?base=8&levels=2"), resume=True)
    with pytest.raises(BadInput, match="holds no run to resume"):
        fit(recipe(out=str(tmp_path / "other")), resume=True)
    assert folder.weights.read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_a_loss_that_is_not_finite_stops_the_run(recipe, monkeypatch):
    settings, real = recipe(steps=12), Segmentation.loss
    calls = []

    def broken(self, logits, masks, **options):
        calls.append(1)
        return real(self, logits, masks, **options) * (float("nan") if len(calls) == 7 else 1.0)

    monkeypatch.setattr(Segmentation, "loss", broken)
    with pytest.raises(Diverged, match=r"the loss is not finite at step 7 of 12.*last good checkpoint"):
        fit(settings, progress=False)
    folder = RunFolder(settings.out)
    model = folder.load_model()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    state, _ = checkpoint.load(setup.last(folder), model, make_optimizer(model, settings))
    assert state.step == 4


def test_weights_that_are_not_finite_are_not_saved(recipe, monkeypatch):
    """The loss of a step was finite, the weights after it are not."""
    settings, real = recipe(save_every=1), loop._Run._step

    def broken(self, images, masks):
        real(self, images, masks)
        if self.state.step == 3:
            with torch.no_grad():
                next(self.net.parameters())[0] = float("inf")

    monkeypatch.setattr(loop._Run, "_step", broken)
    with pytest.raises(Diverged, match="the weights are not finite at step 3"):
        fit(settings, progress=False)
    model = setup.build_model(settings, False)
    assert checkpoint.load(setup.last(RunFolder(settings.out)), model, make_optimizer(model, settings))[0].step == 2


def test_a_rate_that_is_far_too_large(recipe):
    with pytest.raises(Diverged, match="try a smaller lr"):
        fit(recipe(optimizer="sgd", lr=1e6, warmup=0, steps=50), progress=False)


def test_a_full_disk_leaves_the_old_checkpoint(recipe, monkeypatch):
    settings, real, writes = recipe(steps=12), os.fsync, []

    def full(handle):
        if writes.append(1) or len(writes) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device") as caught:
        fit(settings, progress=False)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    folder = RunFolder(settings.out)
    assert folder.load_model() is not None
    assert not list(folder.path.rglob(".*")), "a half-written file stayed"
    resumed = weights(fit(settings, resume=True, progress=False))
    assert same(resumed, weights(fit(recipe(steps=12, out=settings.out + "2"), progress=False)))


@pytest.mark.parametrize("where", ["file/run", "/proc/run"])
def test_an_output_that_cannot_be_written(recipe, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        fit(recipe(out=str(tmp_path / where)), progress=False)


def test_three_classes(recipe, tiny_data):
    model = UNET + "&out_channels=3"
    three = f"{tiny_data}?classes=background,scratch,particle&threshold=1"
    with pytest.raises(BadInput, match="threshold=1 is for two classes"):
        fit(recipe(model=model, data=three))
    with pytest.raises(BadInput, match=r"leave out_channels= out of model=.* or say out_channels=2 there"):
        fit(recipe(model=model, loss="ce"))
    with pytest.raises(BadInput, match="loss=bce_dice is for two classes"):
        Segmentation(("background", "a", "b"), "bce_dice")
    folder = fit(recipe(loss="ce"), progress=False)
    assert folder.read_model().reference.text == UNET + "&out_channels=2"
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["thresholds"] == {"defect": metrics["threshold"]}


def test_options_of_the_step(recipe, tmp_path, monkeypatch):
    """Mixed precision, layout, compilation, clipping: each trains, and does not bind the next run of the process."""
    compiled, real = [], torch.compile

    def eagerly(model, **_):
        compiled.append(model)
        return real(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", eagerly)
    for number, options in enumerate(
        [
            {"amp": "bf16"},
            {"channels_last": True},
            {"compile": True},
            {"mode": "compile bfloat16"},
            {"clip": 0.1, "schedule": "poly"},
            {},
        ]
    ):
        folder = fit(recipe(steps=4, out=str(tmp_path / str(number)), **options), progress=False)
        assert all(torch.isfinite(t).all() for t in weights(folder).values())
        assert all(t.dtype in (torch.float32, torch.int64) for t in weights(folder).values())
    assert len(compiled) == 2
    with pytest.raises(BadInput, match="amp=fp16"):
        fit(recipe(steps=4, out=str(tmp_path / "fp16"), amp="fp16"))


def test_a_python_file_as_a_model_needs_trust(recipe, tmp_path):
    code = tmp_path / "net.py"
    code.write_text("import torch\n\n\ndef net():\n    return torch.nn.Conv2d(3, 1, 3, padding=1)\n")
    with pytest.raises(UntrustedCode):
        fit(recipe(model=f"{code}:net"), progress=False)
    assert not (tmp_path / "run").exists()
    folder = fit(recipe(model=f"{code}:net"), progress=False, trust_code=True)
    with pytest.raises(UntrustedCode):
        folder.load_model()


def test_a_run_goes_on_from_another_runs_weights(recipe, tmp_path):
    first = fit(recipe(steps=20), progress=False)
    second = fit(recipe(model=str(first.path), out=str(tmp_path / "second"), steps=1, lr=0.0), progress=False)
    parameters = {key for key, value in weights(first).items() if "running" not in key and "num_batches" not in key}
    assert all(torch.equal(weights(first)[key], weights(second)[key]) for key in parameters)
    assert second.read_model().reference.text == UNET


def test_no_test_split_is_said_and_survived(recipe, tiny_data, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "val"):
        (data / split).symlink_to(tiny_data / split)
    metrics = json.loads(fit(recipe(data=str(data))).metrics.read_text())
    assert "test" not in metrics
    assert "no test scores" in capsys.readouterr().err


def test_a_bad_file_stops_the_run_before_it_starts(recipe, tmp_path, tiny_data):
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (data / split / kind).mkdir(parents=True)
            for path in (tiny_data / split / kind).iterdir():
                content = path.read_bytes()
                cut = split == "val" and kind == "images" and path.stem == "3"
                (data / split / kind / path.name).write_bytes(content[: len(content) // 2] if cut else content)
    with pytest.raises(BadInput, match=r"3\.png"):
        fit(recipe(data=str(data)), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_rate():
    recipe = Recipe(steps=100, lr=1.0, warmup=0.1)
    rates = [rate_at(step, 100, recipe) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert rate_at(40, 100, Recipe(steps=100, lr=1.0, warmup=20, schedule="poly")) == pytest.approx(0.75**0.9)
    assert rate_at(99, 100, Recipe(steps=100, lr=1.0, warmup=0, schedule="constant")) == 1.0
    assert rate_at(0, 100, Recipe(steps=100, lr=1.0, warmup=0)) == 1.0


def test_biases_and_norms_do_not_decay():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    groups = make_optimizer(net, Recipe(steps=1, weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]


def test_soft_dice_of_hard_masks_is_dice():
    a, b = torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 1, 0])
    assert soft_dice(a, b).item() == pytest.approx((2 * 1 + 1) / (4 + 1))
    assert soft_dice(a, a).item() == 1.0
    assert soft_dice(torch.zeros(4), torch.zeros(4)).item() == 1.0


def test_loss_is_bce_plus_dice():
    logits, mask = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    p, t = logits.double().sigmoid()[:, 0], mask.double()
    bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert Segmentation(("background", "defect")).loss(logits, mask).item() == pytest.approx((bce + 1 - dice).item())


def test_validation_during_training_is_the_evaluation_afterwards(recipe):
    folder = fit(recipe(epochs=2), progress=False)
    rows = list(csv.DictReader(folder.history.read_text().splitlines()))
    samples = open_data(str(recipe().data), "val")
    best = max(float(row["dice"]) for row in rows)
    assert evaluate(folder.load_model(), samples).dice == best


def test_the_loop_names_its_sentences():
    """`train` stays readable from top to bottom."""
    import inspect

    assert len(inspect.getsource(loop._Run.train).splitlines()) <= 40
