"""A report on classifiers: top-1 by hand, the confusion matrix on the page, no overlays."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.files import write_json
from leanconv.report import compare_runs, write_report
from leanconv.report.confusion import matrix
from leanconv.report.words import sentences
from leanconv.runs import RunFolder, load
from leanconv.train.data.augment import to_float

NETWORK = "leanconv:resnet20_cifar?num_classes=3&width=0.25"
CLASSES = ["a<b", "cat", "dog"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root, dice = tmp_path_factory.mktemp("classifiers"), np.random.default_rng(0)
    for name in CLASSES:
        (root / "data" / "test" / name).mkdir(parents=True)
        for index in range(6):
            pixels = dice.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / "test" / name / f"{index}.png")
    runs = []
    for seed, (name, model) in enumerate({"dense": NETWORK, "lean": f"{NETWORK}&conv=hetconv(part=2)"}.items()):
        run = RunFolder(root / name)
        run.path.mkdir()
        run.recipe.write_text(f'model = "{model}"\ndata = "{root / "data"}"\nsize = 24\nepochs = 2\n')
        run.write_model(model, task="classify", classes=CLASSES)
        torch.manual_seed(seed)
        run.save_model(load(model))
        run.history.write_text("epoch,step,loss,top1,top5\n1,10,1.0,0.4,0.9\n2,20,0.8,0.5,0.9\n")
        write_json(run.metrics, {"task": "classify", "test": {"top1": 0.5}})
        runs.append(run)
    return runs


@pytest.fixture(scope="module")
def compared(two):
    return compare_runs(two, budget_s=0.05, threads=1)


def test_top1_by_hand(compared, two):
    model, hits = two[1].load_model(), []
    for label, name in enumerate(CLASSES):
        for path in sorted((two[1].path.parent / "data" / "test" / name).iterdir()):
            pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
            with torch.no_grad():
                hits.append(int(model(to_float(pixels)).argmax()) == label)
    numbers = json.loads(json.dumps(compared.to_dict()))["runs"][1]
    assert numbers["top1"] == pytest.approx(sum(hits) / 18)
    assert sum(map(sum, compared.runs[1].confusion)) == compared.images == 18
    assert list(compared.runs[1].images.values()) == [float(hit) for hit in hits]
    assert compared.shape == (1, 3, 24, 24)
    assert compared.cases == []
    assert "top-1" in sentences(compared.runs)[0][1]
    assert "Top-1" in str(compared)
    assert "Dice" not in str(compared)


def test_the_page_shows_matrices_and_escapes_names(compared, tmp_path):
    html = write_report(compared, tmp_path / "r.html").read_text()
    assert html.count("Confusion matrix of") == 2
    assert "a&lt;b" in html
    assert "a<b" not in html
    assert "Validation top-1" in html
    assert 'id="images"' not in html
    assert "Dice" not in re.sub(r"(?s)<(script|style)>.*?</\1>", "", html)


def test_of_many_classes_no_matrix_is_drawn_and_the_page_says_so(two, tmp_path, monkeypatch):
    monkeypatch.setattr("leanconv.train.tasks.classify.MATRIX_CLASSES", 2)
    few = compare_runs(two, budget_s=0, threads=1)
    html = write_report(few, tmp_path / "r.html").read_text()
    assert "Confusion matrix of" not in html
    assert "has 3 classes; a confusion matrix is drawn for at most 2" in html
    assert few.runs[0].scores["top1"] > 0


def test_matrix_counts_are_those_given():
    svg = matrix("m", ["x", "y"], [[3, 1], [0, 2]])
    assert re.findall(r'data-tip="([^"]+)"', svg) == ["x: 3 right", "x taken for y: 1 (25.0 %)", "y: 2 right"]
    assert "5 of 6 images on the diagonal" in svg
    large = matrix("m", [str(k) for k in range(60)], (5 * np.eye(60, dtype=int)).tolist())
    assert large.count("<rect") == 61
    assert "<text" not in large
