"""The benchmark of features: errors against a plain computation, photographs apart, a whole round on a tiny network."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import feature_error
from docs.generate.training import feature_error as section
from leanconv.convert import apply_, plan
from leanconv.runs import load
from leanconv.train.data.augment import to_float

REFERENCE = "leanconv:resnet20_cifar?width=0.25&num_classes=2"


def test_judged_photographs_are_not_fitted_on():
    given, judged = feature_error.divided(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1))
    assert judged.flatten().tolist() == [3, 7]
    assert given.images.flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9]


def test_errors_are_of_each_block_and_of_the_output():
    torch.manual_seed(0)
    dense = load(REFERENCE).eval()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    lean = copy.deepcopy(dense)
    assert set(feature_error.errors(lean, dense, images).values()) == {0.0}
    apply_(lean, plan(dense, to_float(images), to="hetconv(part=4)"))
    found = feature_error.errors(lean, dense, images)
    assert list(found) == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)] + ["output"]
    with torch.no_grad():
        own, theirs = lean(to_float(images)), dense(to_float(images))
    assert found["output"] == pytest.approx(float((own - theirs).norm() / theirs.norm()), rel=1e-5)
    assert feature_error.agreement(dense, dense, images) == 1.0


def test_what_counts_as_trained(tmp_path):
    assert not feature_error.has_weights(REFERENCE)
    assert not feature_error.has_weights("timm:resnet18?zero_init_last=false")
    assert feature_error.has_weights("timm:resnet18?pretrained=true")
    assert feature_error.has_weights(str(tmp_path))


def test_random_weights_get_the_statistics_of_the_photographs():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Flatten())
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    feature_error.settle_(model, feature_error.Pictures(images))
    assert not norm.training
    torch.testing.assert_close(norm.running_mean, to_float(images).mean((0, 2, 3)))


@pytest.mark.slow
def test_a_whole_round(tmp_path, monkeypatch, capsys):
    for name in ("whole.STEPS", "fitting.STEPS", "fitting.FRESH_STEPS"):  # how near a fit comes is no matter here
        monkeypatch.setattr(f"leanconv.convert.fit.{name}", (2, 2) if name == "whole.STEPS" else 2)
    dice = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "data" / "test" / kind).mkdir(parents=True)
        for number in range(6):
            pixels = dice.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "test" / kind / f"{number}.png")
    out = tmp_path / "features.json"
    words = ["--model", REFERENCE, "--size", "16", "--images", "12", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["feature_error", str(tmp_path / "data"), *words])
    for _ in range(2):  # again: the row is replaced
        feature_error.main()
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 1
    row = found["rows"][0]
    assert (row["fit_images"], row["judged_images"], row["trained"], row["layers"]) == (9, 3, False, 18)
    assert row["fit"].keys() == row["project"].keys() == set(row["features"])
    assert "9 others" in capsys.readouterr().out
    text = section("feature_error", found)
    assert text.count("| `layer") == 9
    assert "Same top-1" not in text
    assert "Same top-1: 50.0% projected, 100.0% fitted" in section(
        "feature_error", {"rows": [row | {"trained": True, "project_agreement": 0.5, "fit_agreement": 1.0}]}
    )
