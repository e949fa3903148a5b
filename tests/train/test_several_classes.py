"""Several classes the whole way: RGB masks to a network of as many outputs, to a table with names and verdicts."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.samples import open_data
from leanconv.train.inference.predict import predict
from leanconv.train.inference.score import score_run, stored_decision, stored_threshold
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.decision import Rule

CLASSES = ("background", "scratch", "pit")
UNET = "leanconv:unet?base=4&levels=2"


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Red bars and green squares on noise; RGB masks in the colours of labelmap.txt, a grey frame not to be judged."""
    root, random = tmp_path_factory.mktemp("painted"), np.random.default_rng(1)
    (root / "labelmap.txt").write_text("background 0 0 0\nscratch #ff0000\npit 0 0 255\n")
    for split, count in {"train": 16, "val": 5, "test": 4}.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image, mask = random.integers(0, 90, (40, 40, 3), dtype=np.uint8), np.zeros((40, 40, 3), np.uint8)
            mask[:2] = 128
            for channel, colour, h, w in ((0, (255, 0, 0), 4, 18), (1, (0, 0, 255), 9, 9)):
                if index % 4 == 3 and channel:
                    continue
                y, x = random.integers(2, 10) + (0 if channel else 20), random.integers(2, 20)
                mask[y : y + h, x : x + w] = colour
                image[y : y + h, x : x + w, channel] += 140
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def run(painted, tmp_path_factory):
    """A trained run; nothing in its recipe says how many outputs the network has."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(
        model=UNET, data=f"{painted}?colors=labelmap.txt&ignore=808080", out=str(out), size=32, batch=8, steps=60,
        lr=0.02, threads=1, device="cpu", light=0.0, flips=False, fail_classes=("pit",),
    )  # fmt: skip
    return fit(recipe, progress=False)


def test_from_rgb_masks_to_a_named_table(run, painted, tmp_path, capsys):
    stored = run.read_model()
    assert stored.reference.text == UNET + "&out_channels=3"
    assert stored.classes == CLASSES
    metrics = json.loads(run.metrics.read_text())
    assert set(metrics["thresholds"]) == {"scratch", "pit"}
    assert metrics["threshold"] is None
    assert set(metrics["threshold_curve"]["classes"]) == {"scratch", "pit"}
    for name in ("scratch", "pit"):
        assert metrics["test"]["classes"][name]["iou"] > 0.7
        assert metrics["test"]["objects"]["classes"][name]["recall"] > 0.7
    assert sum(metrics["test"]["verdicts"].values()) == 2 * metrics["test"]["images"]
    assert score_run(run.path).to_dict() == metrics["test"]

    found = predict(run.path, [painted / "test" / "images"], tmp_path / "out")
    with (tmp_path / "out" / "defects.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert {row["class"] for row in listed} == {"scratch", "pit"}
    truth = {sample.name: sample.mask.numpy() for sample in open_data(metrics_data(run), "test")}
    right = []
    for row in listed:
        box = truth[row["file"].split("/")[-1].removesuffix(".png")][
            int(row["y0"]) : int(row["y1"]), int(row["x0"]) : int(row["x1"])
        ]
        right.append((box == CLASSES.index(row["class"])).mean() > 0.5)
    assert np.mean(right) > 0.7  # so short a training marks a speck now and then
    with (tmp_path / "out" / "verdicts.csv").open(newline="") as file:
        verdicts = {row["file"]: row for row in csv.DictReader(file)}
    for picture in found.done:
        pits = sum(defect.class_name == "pit" for defect in picture.defects)
        assert verdicts[picture.image]["verdict"] == ("fail" if pits else "pass")
        assert verdicts[picture.image]["why"] == (f"pit: {pits}" if pits else "")
    assert {row["verdict"] for row in verdicts.values()} == {"pass", "fail"}


def metrics_data(run):
    return Recipe.read(run.recipe).data


def test_the_end_of_a_training_names_each_class(run):
    from leanconv.train.inference.score import summary

    text = summary(run)
    assert [line.split()[:2] for line in text.splitlines() if line.split()[1:2] in (["scratch"], ["pit"])] == [
        ["val", "scratch"], ["val", "pit"], ["test", "scratch"], ["test", "pit"],
    ]  # fmt: skip
    assert "thresholds chosen on val: scratch 0." in text
    metrics = json.loads(run.metrics.read_text())
    curve = metrics["threshold_curve"]
    for name in ("scratch", "pit"):
        (row,) = (line.split() for line in text.splitlines() if line.startswith(f"{name} "))
        dice, chosen = curve["classes"][name]["dice"], metrics["thresholds"][name]
        assert row[1:6] == [f"{dice[curve['thresholds'].index(t)]:.4f}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert row[6:8] == [f"{chosen:.2f}", f"{max(dice):.4f}"]


def test_the_recipe_of_a_run_decides_later_too(run, painted, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunFolder(tmp_path / "run")
    chosen = stored_decision(copy)
    assert chosen.rule == Rule(*(json.loads(run.metrics.read_text())[key] for key in ("min_area", "merge")),
                               fail_classes=("pit",))  # fmt: skip
    Recipe.read(copy.recipe, ["min_area=25", "max_defects=0", "fail_classes="]).write(copy.recipe)
    assert stored_decision(copy).rule == Rule(25, chosen.rule.merge, max_defects=0)
    found = predict(copy.path, [painted / "test" / "images"], tmp_path / "out")
    assert all(defect.area_px >= 25 for picture in found.done for defect in picture.defects)
    assert all(picture.verdict == "fail" for picture in found.done if picture.defects)


def test_a_run_of_an_older_version(run, painted, tmp_path):
    """Neither its recipe nor its metrics has the new keys, and its classes were numbered by the data reference."""
    shutil.copytree(run.path, tmp_path / "run")
    old = RunFolder(tmp_path / "run")
    new = ("classes", "min_area", "merge", "max_defects", "max_area", "fail_classes")
    lines = [line for line in old.recipe.read_text().splitlines() if line.split(" = ")[0] not in new]
    old.recipe.write_text("\n".join(lines) + "\n")
    old.metrics.write_text('{"threshold": null, "task": "segment"}')
    assert stored_threshold(old) is None
    scores = score_run(old.path)
    assert (scores.threshold, scores.rule) == (None, Rule(0, 0))
    assert scores.class_iou[1] > 0.6
    found = predict(old.path, [painted / "test" / "images" / "0.png"], tmp_path / "out").done[0]
    assert (found.thresholds, found.verdict) == ({}, "fail")
    resumed = fit(Recipe.read(old.recipe, [f"out={old.path}", "steps=61"]), resume=True, progress=False)
    assert "thresholds" in json.loads(resumed.metrics.read_text())


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"thresholds": {"scratch": 0.5, "bump": 0.4}}, "thresholds of scratch, bump; model.json has scratch, pit"),
        ({"thresholds": {"scratch": 0.5, "pit": 1.4}}, "threshold of pit=1.4"),
        ({"threshold": True}, "threshold=True"),
        ({"threshold": 0.5, "min_area": -3}, "min_area=-3: must be pixels"),
        ({"threshold": 0.5, "merge": "x"}, "merge=x: must be pixels"),
    ],
)
def test_damaged_decisions(tmp_path, stored, says):
    folder = RunFolder(tmp_path / "run")
    folder.write_model(UNET + "&out_channels=3", task="segment", classes=CLASSES)
    folder.metrics.write_text(json.dumps(stored))
    with pytest.raises(BadCheckpoint, match=says):
        stored_decision(folder)


def test_outputs_follow_the_data(painted, tmp_path):
    data = f"{painted}?colors=labelmap.txt&ignore=808080"
    settings = {"data": data, "out": str(tmp_path / "run"), "size": 32, "steps": 1, "device": "cpu", "threads": 1}
    with pytest.raises(BadInput, match=r"3 classes \(background, scratch, pit\).*leave out_channels= out of model="):
        fit(Recipe(model=UNET + "&out_channels=4", **settings), progress=False)
    with pytest.raises(BadInput, match=r"the recipe or run says 2 classes, colors= 3"):
        fit(Recipe(model=UNET, classes=("ok", "bad"), **settings), progress=False)
    with pytest.raises(BadInput, match=r"fail_classes has 'bump': one of scratch, pit"):
        fit(Recipe(model=UNET, fail_classes=("bump",), **settings), progress=False)
    assert not (tmp_path / "run").exists()
    folder = fit(Recipe(model=UNET, classes=("copper", "a", "b"), **settings), progress=False)
    assert folder.read_model().classes == ("copper", "a", "b")
    assert score_run(folder.path, split="val").classes == ("copper", "a", "b")
    on = fit(Recipe(model=str(folder.path), **settings | {"out": str(tmp_path / "on")}), progress=False)
    assert on.read_model().reference.text == UNET + "&out_channels=3"
