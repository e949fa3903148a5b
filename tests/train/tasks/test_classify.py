"""Classification: what it counts against counting by hand, what it learns, and that a killed run loses nothing."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.inference.score import read_metrics
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.classify import Accuracy, Classification, evaluate, judged
from tests.conftest import COLOURS
from tests.train.test_resume import KILLED, assert_same_run

# Batch statistics, dropout, ODConv's temperature and LHC's masks: everything that a careless checkpoint forgets.
NET = """
from torch import nn
from leanconv.nn import LHConv2d, ODConv2d

def plain(classes=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, classes))

def staged():
    lean = [ODConv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), LHConv2d(8, 8, 3, padding=1, density=0.3)]
    return nn.Sequential(*lean, nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


@pytest.fixture
def recipe(coloured, tmp_path):
    (tmp_path / "net.py").write_text(NET)

    def make(out="run", net="plain", **settings):
        defaults = {"model": f"{tmp_path / 'net.py'}:{net}", "data": str(coloured), "out": str(tmp_path / out)}
        defaults |= {"size": 16, "batch": 6, "device": "cpu", "threads": 1, "lr": 0.02, "light": 0.1}
        return Recipe(**defaults | ({} if settings.keys() & {"steps", "epochs"} else {"steps": 18}) | settings)

    return make


def test_it_learns_and_leaves_a_whole_run_folder(recipe, coloured, capsys):
    folder = fit(recipe(epochs=10, smoothing=0.1), trust_code=True)
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["test"]["top1"] > 0.9
    assert metrics["task"] == "classify"
    stored = folder.read_model()
    assert (stored.task, stored.classes) == ("classify", ("blue", "green", "red"))
    rows = list(csv.DictReader(folder.history.read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "step", "loss", "top1", "top5", "lr", "seconds"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert metrics["best_epoch"] == int(max(rows, key=lambda row: float(row["top1"]))["epoch"])
    said = capsys.readouterr().err
    assert "36 train, 15 val, 12 test images; blue, green, red" in said
    assert "top-1" in said
    # the stored matrix against ten lines of own
    model, own = folder.load_model(trust_code=True), np.zeros((3, 3), int)
    for truth, name in enumerate(COLOURS):
        for path in (coloured / "test" / name).iterdir():
            pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
            with torch.no_grad():
                own[truth, int(model((pixels / 255 - 0.5) / 0.25).argmax())] += 1
    assert metrics["test"]["confusion"] == own.tolist()
    assert metrics["test"]["top1"] == np.trace(own) / 12
    assert metrics["test"]["classes"]["green"] == {"accuracy": own[1, 1] / 4, "images": 4}


class _Table(nn.Module):
    """Gives the logits that were made up for the image whose first pixel holds its number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        numbers = ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long()
        return self.logits[numbers]


class _Numbered:
    """A source of pictures whose pixels are their number."""

    def __init__(self, labels):
        self.labels, self.names = labels, [str(place) for place in range(len(labels))]

    def size(self, index):
        return 8, 8

    def read(self, index):
        return torch.full((3, 8, 8), index, dtype=torch.uint8)


def test_counts_by_hand():
    from leanconv.train.data.labelled import Labelled

    dice = random.Random(0)
    labels = [dice.randrange(7) for _ in range(60)]
    logits = torch.tensor([[float(dice.randrange(6)) for _ in range(7)] for _ in range(60)])  # many ties
    samples = Labelled(_Numbered(labels), [f"c{k}" for k in range(7)], 8)
    found = evaluate(_Table(logits), samples, batch=16)
    top1 = top5 = 0
    matrix = [[0] * 7 for _ in range(7)]
    for row, label in zip(logits.tolist(), labels, strict=True):
        order = sorted(range(7), key=lambda k: (-row[k], k))
        top1 += order[0] == label
        top5 += label in order[:5]
        matrix[label][order[0]] += 1
    assert found.confusion.tolist() == matrix
    assert (found.top1, found.top5) == (top1 / 60, top5 / 60)
    assert found.class_accuracy == [row[k] / sum(row) for k, row in enumerate(matrix)]
    a, b, n = found.confused(1)[0]
    assert n == max(matrix[i][j] for i in range(7) for j in range(7) if i != j) == matrix[int(a[1])][int(b[1])]
    shares = [evaluate(_Table(logits), samples, rank=r, processes=2) for r in (0, 1)]
    assert torch.equal(shares[0].ranks + shares[1].ranks, found.ranks)  # what the other process counts is 0 here
    whole = found.to_dict(per_image=True)
    assert sum(each["correct"] for each in whole["per_image"]) == top1
    assert f"{top1 / 60:.4f}" in str(found)


def test_not_a_number_is_never_right():
    logits = torch.tensor([[float("nan"), 1.0, 2.0], [float("nan")] * 3])
    best, rank = judged(logits, torch.tensor([0, 2]))
    hits = (rank == 0).tolist()
    assert hits[1] is False or best[1] != 2


def test_top5_of_few_classes_leaves_one_out():
    one = Accuracy(("a", "b"), ("x", "y"), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert one.top1 == one.top5 == 0.5


def test_many_classes_take_memory_by_the_image_not_by_the_pair():
    """A matrix of 65,536 classes would be 34 GB."""
    labels, predicted = torch.tensor([7, 7, 7, 65535, 65535, 0]), torch.tensor([7, 9, 9, 65535, 3, 3])
    many = Accuracy(
        tuple(f"c{k}" for k in range(65536)), tuple("abcdef"), labels, predicted, (labels != predicted).long()
    )
    assert (many.top1, many.top5) == (2 / 6, 1)
    accuracy = many.class_accuracy
    assert [accuracy[k] for k in (0, 3, 7, 65535)] == [0, None, 1 / 3, 1 / 2]
    assert many.confused() == [("c7", "c9", 2), ("c0", "c3", 1), ("c65535", "c3", 1)]
    assert many.confusion is None
    whole = many.to_dict()
    assert "confusion" not in whole
    assert whole["classes"]["c7"] == {"accuracy": 1 / 3, "images": 3}
    assert "c7 taken for c9: 2" in str(many)


def test_loss_with_smoothing_by_hand():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    q = torch.full((5, 4), 0.2 / 4, dtype=torch.float64)
    q[range(5), labels] += 0.8
    expected = -(q * logits.double().log_softmax(1)).sum(1).mean()
    found = Classification(("a", "b", "c", "d"), smoothing=0.2).loss(logits, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.slow
def test_killed_in_a_step_and_resumed(recipe, tmp_path):
    """With ODConv's temperature and LHC's masks and penalty: six steps an epoch, frozen after the second."""
    options = {"net": "staged", "save_every": 4, "topology_epochs": 2, "optimizer": "sgd", "nesterov": True}
    settings = recipe("killed", **options)
    path = settings.write(tmp_path / "killed.toml")
    number = random.SystemRandom().randint(2, 18)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "step", str(number), str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = fit(settings, resume=True, progress=False, trust_code=True)
    assert_same_run(resumed, fit(recipe("whole", **options), progress=False, trust_code=True))


def test_the_loop_drives_the_schedule(recipe, monkeypatch):
    """The temperature of every step, the penalty in the loss, the scores frozen after the first stage."""
    from leanconv.nn import LHConv2d, ODConv2d
    from leanconv.train import loop

    real, seen = loop._Run._step, []

    def step(self, *batch):
        od = next(m for m in self.net.modules() if isinstance(m, ODConv2d))
        lhc = next(m for m in self.net.modules() if isinstance(m, LHConv2d))
        before, temperature, scores = self.loss_sum.clone(), od.temperature, lhc.scores.detach().clone()
        real(self, *batch)
        seen.append((temperature, torch.equal(scores, lhc.scores), float(self.loss_sum - before)))

    monkeypatch.setattr(loop._Run, "_step", step)
    plain = {"net": "staged", "topology_epochs": 2, "eval_every": 9, "augment": False, "lr": 1e-3}
    folder = fit(recipe(**plain), progress=False, trust_code=True)
    assert [t for t, *_ in seen] == pytest.approx([1 + 29 * (60 - i) / 60 for i in range(18)])
    assert [frozen for _, frozen, _ in seen[12:]] == [True] * 6
    assert not all(frozen for _, frozen, _ in seen[6:12])
    assert read_metrics(folder)["steps"] == 18
    monkeypatch.setattr(loop.Schedule, "penalty", lambda self: 100.0)
    second, seen = seen, []
    fit(recipe("other", **plain), progress=False, trust_code=True)
    assert seen[0][2] == pytest.approx(second[0][2] + 100, rel=1e-6)


def test_a_run_does_not_go_on_with_renamed_classes(recipe, coloured, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(coloured, data)
    fit(recipe(data=str(data), steps=2), progress=False, trust_code=True)
    for split in ("train", "val", "test"):
        (data / split / "red").rename(data / split / "amber")  # now the first by name: every label means another class
    with pytest.raises(BadInput, match=r"started with the classes blue, green, red, .* now has amber, blue, green"):
        fit(recipe(data=str(data), steps=4), resume=True, progress=False, trust_code=True)
    assert RunFolder(tmp_path / "run").read_model().classes == ("blue", "green", "red")


def test_settings_of_segmentation_are_refused(recipe):
    for settings in ({"zoom": 1.5}, {"defect_crop": 0.5}):
        with pytest.raises(BadInput, match=f"{next(iter(settings))}=.* is for segmentation"):
            fit(recipe(**settings), progress=False, trust_code=True)


def test_a_model_of_other_outputs_is_refused(recipe, tmp_path):
    with pytest.raises(BadInput, match=r"the model gives \(1, 5\).*3 classes need \(1, 3\): leave num_classes= out"):
        fit(recipe(model=f"{tmp_path / 'net.py'}:plain?classes=5"), trust_code=True)
    (tmp_path / "grey.py").write_text("from torch import nn\n\ndef net():\n    return nn.Conv2d(1, 3, 16)\n")
    with pytest.raises(BadInput, match="does not run on 3x16x16 images"):
        fit(recipe(model=f"{tmp_path / 'grey.py'}:net"), trust_code=True)
    with pytest.raises(BadInput, match="loss=bce_dice is for segmentation"):
        fit(recipe(loss="bce_dice"), trust_code=True)
    assert not RunFolder(tmp_path / "run").recipe.exists()


def test_all_training_images_and_the_last_weights(recipe, coloured, tmp_path):
    """keep=last chooses nothing, so no validation split is needed."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / split).symlink_to(coloured / split)
    with pytest.raises(BadInput, match="there is no val split"):
        fit(recipe(data=f"{data}?val=0"), trust_code=True)
    folder = fit(recipe(data=f"{data}?val=0", keep="last", epochs=3), progress=False, trust_code=True)
    metrics = read_metrics(folder)
    assert "val" not in metrics
    assert metrics["best_epoch"] == 3
    rows = list(csv.DictReader(folder.history.read_text().splitlines()))
    assert float(rows[-1]["top1"]) == metrics["test"]["top1"]
    assert len(open_labelled(f"{data}?val=0", "train", size=16)) == 36
    assert len(open_labelled(f"{data}?val=0.25", "train", size=16)) == 27
