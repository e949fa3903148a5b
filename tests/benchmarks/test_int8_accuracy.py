"""The benchmark of what int8 costs: images are cut alike with their masks, and one tiny run goes through whole."""

import json
import sys

import pytest
import torch

from benchmarks import int8_accuracy
from leanconv.train.data.samples import Sample
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe


class Samples(list):
    classes = ("background", "defect")


def picture(height, width):
    places = torch.arange(height * width).view(height, width)
    return Sample(places.expand(3, -1, -1), places, "")


def test_images_and_masks_are_cut_alike_and_small_ones_left_out():
    found = int8_accuracy.Middle(Samples([picture(9, 6), picture(5, 20), picture(6, 6)]), 6)
    assert len(found) == 2
    assert found.classes == Samples.classes
    first, second = found[0], found[1]
    assert first.mask[0, 0] == 6  # the second of nine rows
    assert first.image.shape == (3, 6, 6)
    assert torch.equal(first.image[0], first.mask)
    assert torch.equal(second.mask, picture(6, 6).mask)
    many = int8_accuracy.Middle(Samples(picture(6 + i, 6) for i in range(9)), 6, most=3)
    assert [int(sample.mask[0, 0]) // 6 for sample in many] == [0, 1, 3]  # the first, fourth and seventh


@pytest.mark.slow
def test_a_run_goes_through(tiny_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    run, out, model = tmp_path / "run", tmp_path / "int8.json", "leanconv:unet?base=2&levels=1"
    recipe = Recipe(
        model=model, data=str(tiny_data), out=str(run), size=16, batch=2, steps=2, device="cpu", threads=1, mode="eager"
    )  # fmt: skip
    fit(recipe, progress=False)
    words = ["int8_accuracy", str(run), "--size", "16", "--engines", "onnxruntime", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    int8_accuracy.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["reference"] == model
    assert abs(row["lost"]) <= 1
    assert "lost in int8" in capsys.readouterr().out
