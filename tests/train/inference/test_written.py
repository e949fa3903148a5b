"""What predict did not make, or what was changed since, or is of another image: it stays."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from torch import nn

from leanconv.errors import BadInput
from leanconv.train.inference import work as room
from leanconv.train.inference.predict import predict
from leanconv.train.inference.written import Places


@pytest.fixture
def pictures(tmp_path):
    for folder in ("in", "elsewhere"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            pixels = np.random.default_rng(len(folder)).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return tmp_path / "in"


def net(outputs=1):
    return nn.Conv2d(3, outputs, 1).eval()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["a_mask.png", "a_overlay.png", "a.json", "b_mask.png"])
@pytest.mark.parametrize("content", [b"mine", b"", b"{}", b"\x89PNG\r\n\x1a\n"])
def test_files_that_predict_did_not_make_stay(pictures, tmp_path, name, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name} was not made by predict.*--overwrite"):
        predict(net(), [pictures], out)
    assert contents(out) == {name: content}, "the other image's files were not begun either"
    predict(net(), [pictures], out, overwrite=True)
    assert len(contents(out)) == 8


@pytest.mark.parametrize("what", ["folder", "pipe", "link"])
def test_what_is_no_file_stays(pictures, tmp_path, what):
    out, place = tmp_path / "out", tmp_path / "out" / "a_mask.png"
    out.mkdir()
    {"folder": place.mkdir, "pipe": lambda: os.mkfifo(place), "link": lambda: place.symlink_to(pictures / "a.png")}[
        what
    ]()
    with pytest.raises(BadInput, match="was not made by predict"):
        predict(net(), [pictures], out)
    assert [path.name for path in out.iterdir()] == ["a_mask.png"]


def test_the_same_again_just_works(pictures, tmp_path, monkeypatch):
    out, model = tmp_path / "out", net()
    predict(model, [pictures], out, threshold=0.3)
    first = contents(out)
    predict(model, [pictures], out, threshold=0.3)
    assert contents(out) == first
    monkeypatch.chdir(pictures)
    predict(model, ["a.png"], out, threshold=0.9)  # the same image, named otherwise
    assert json.loads((out / "a.json").read_text())["threshold"] == 0.9
    assert contents(out)["b.json"] == first["b.json"]


def test_a_mask_that_was_touched_up_stays(pictures, tmp_path):
    out = tmp_path / "out"
    predict(net(), [pictures], out)
    mask = Image.open(out / "a_mask.png")
    mask.putpixel((0, 0), 255 - mask.getpixel((0, 0)))
    mask.save(out / "a_mask.png", pnginfo=None)
    before = contents(out)
    with pytest.raises(BadInput, match=r"a_mask\.png was not made by predict, or was changed since"):
        predict(net(), [pictures], out)
    assert contents(out) == before


def test_the_prediction_of_another_image_of_that_name_stays(pictures, tmp_path):
    out, model = tmp_path / "out", net()
    predict(model, [pictures], out)
    before = contents(out)
    with pytest.raises(BadInput, match=r"a\.json is the prediction of .*in/a\.png, .*b\.json is the prediction"):
        predict(model, [tmp_path / "elsewhere"], out)
    Image.open(pictures / "a.png").save(pictures / "a.bmp")
    with pytest.raises(BadInput, match="is the prediction of"):
        predict(model, [pictures / "a.bmp"], out)
    assert contents(out) == before
    predict(model, [tmp_path / "elsewhere"], out, overwrite=True)
    assert contents(out) != before


def test_what_comes_while_it_predicts_stays_too(pictures, tmp_path, monkeypatch):
    """Between the look and the write: another predict, or the user."""
    out, real = tmp_path / "out", room.logits_alike

    def slowly(*arguments, **options):
        out.mkdir(exist_ok=True)
        (out / "b_overlay.png").write_text("mine")
        return real(*arguments, **options)

    monkeypatch.setattr(room, "logits_alike", slowly)
    with pytest.raises(BadInput, match=r"b_overlay\.png was not made by predict"):
        predict(net(), [pictures], out)
    assert sorted(contents(out)) == [
        "a.json",
        "a_mask.png",
        "a_overlay.png",
        "b_overlay.png",
        "defects.csv",
        "verdicts.csv",
    ]
    assert contents(out)["b_overlay.png"] == b"mine"


def test_an_image_with_a_name_too_long_for_its_files_is_written_under_a_shorter_one(pictures, tmp_path):
    (pictures / "b.png").rename(pictures / ("x" * 248 + ".png"))
    for _ in range(2):  # the same again just works
        found = predict(net(), [pictures], tmp_path / "out")
        assert [len(found.done), len(found.failed)] == [2, 0]
    names = sorted(contents(tmp_path / "out"))
    assert names[:3] == ["a.json", "a_mask.png", "a_overlay.png"]
    assert len(names) == 8
    assert all(name.startswith("x" * 100) and len(name.encode()) <= 255 for name in names[5:])


def test_the_mark_is_no_part_of_the_picture(pictures, tmp_path):
    found = predict(net(3), [pictures / "a.png"], tmp_path / "out")
    places = Places.of(pictures / "a.png", tmp_path / "out")
    mask = Image.open(places.mask)
    mask.load()
    assert mask.size == (24, 20)
    assert mask.mode == "P"
    assert int((np.asarray(mask) > 0).sum()) == found.done[0].area_px
    assert json.loads(places.defects.read_text()) == found.done[0].to_dict()


def test_a_classifiers_list(leanconv_classifier, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.json").write_text('{"mine": 1}')
    with pytest.raises(BadInput, match=r"predictions\.json was not made by predict"):
        predict(leanconv_classifier, [pictures], out)
    assert (out / "predictions.json").read_text() == '{"mine": 1}'
    for overwrite in (True, False, False):
        assert len(predict(leanconv_classifier, [pictures], out, overwrite=overwrite).done) == 2
    shutil.rmtree(out)
    assert len(predict(leanconv_classifier, [pictures], out).done) == 2


@pytest.fixture
def leanconv_classifier(tmp_path):
    from leanconv.models import build
    from leanconv.runs import RunFolder

    run = RunFolder(tmp_path / "run")
    reference = "leanconv:vgg16_cifar?num_classes=3&width=0.0625"
    run.write_model(reference, task="classify", classes=("a", "b", "c"))
    run.save_model(build("vgg16_cifar", num_classes=3, width=0.0625))
    run.recipe.write_text("size = 32\nsteps = 1\n")
    return run.path
