"""Watching a folder: complete files alone, changed ones again, and an end in one line."""

import json
import os
import shutil
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from torch import nn

from leanconv.errors import BadInput
from leanconv.train.data.ahead import DEPTH, read_ahead
from leanconv.train.inference.predict_classes import Failed, Guess
from leanconv.train.inference.watch import Arrivals, watch
from leanconv.train.inference.work import Asked


class Bright(nn.Module):
    def forward(self, x):
        return x.mean(1, keepdim=True)


def put(path, value=200):
    Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(path)
    return path


def test_a_file_that_grows_waits_and_one_that_changes_comes_again(tmp_path):
    arrivals = Arrivals(tmp_path)
    picture = put(tmp_path / "a.png")
    content = picture.read_bytes()
    picture.write_bytes(content[:50])
    assert arrivals.look() == []
    picture.write_bytes(content[:80])
    assert arrivals.look() == []
    picture.write_bytes(content)
    assert arrivals.look() == []
    assert arrivals.look() == [picture]
    assert arrivals.look() == []
    os.utime(picture, ns=(1, 1))
    assert arrivals.look() == []
    assert arrivals.look() == [picture]
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no image")
    assert [arrivals.look() for _ in range(3)] == [[], [], []]


def test_a_folder_that_disappears_is_one_line(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder / "a.png")
    results = watch(Bright(), folder, tmp_path / "out", Asked(), every_s=0.01)
    assert next(results).image == str(folder / "a.png")
    put(folder / "b.png")
    (folder / "c.png").write_bytes(b"nothing")
    found = {os.path.basename(each.image): each for each in (next(results), next(results))}
    assert not isinstance(found["b.png"], Failed)
    assert isinstance(found["c.png"], Failed)
    assert (tmp_path / "out" / "b_mask.png").is_file()
    shutil.rmtree(folder)
    with pytest.raises(BadInput, match="the watched folder does not exist"):
        next(results)
    assert (tmp_path / "out" / "b_mask.png").is_file()


def test_a_file_that_stands_still_for_a_moment_waits(tmp_path):
    """While other images are predicted the folder is looked at no sooner than every `every_s` seconds."""
    put(tmp_path / "a.png")
    results = watch(Bright(), tmp_path, tmp_path / "out", Asked(), every_s=0.3)
    next(results)
    start = time.monotonic()
    for name in ("b.png", "c.png"):
        put(tmp_path / name)
        assert os.path.basename(next(results).image) == name
    assert time.monotonic() - start >= 1.1  # two looks at each, and all of them 0.3 s apart


def test_the_list_of_a_classifier_has_what_ctrl_c_leaves(tmp_path, monkeypatch):
    @contextmanager
    def opened(*_, **__):
        yield lambda paths: (Guess(str(path), (("pit", 1.0),)) for path in paths)

    monkeypatch.setattr("leanconv.train.inference.watch.is_classifier", lambda run: True)
    monkeypatch.setattr("leanconv.train.inference.watch.opened", opened)
    for path in (tmp_path / "in", tmp_path / "out"):
        path.mkdir()
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "b.png")
    results = watch(Bright(), tmp_path / "in", tmp_path / "out", Asked(), every_s=0.01)
    next(results)
    results.close()  # as the command's end does
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [os.path.basename(each["image"]) for each in found["images"]] == ["a.png"]


def test_out_is_not_the_watched_folder_and_a_file_in_the_way_costs_one_image(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    with pytest.raises(BadInput, match="is the watched folder itself"):
        next(watch(Bright(), folder, folder, Asked()))
    (out / "a_mask.png").write_text("mine")
    put(folder / "a.png")
    put(folder / "b.png")
    results = watch(Bright(), folder, out, Asked(), every_s=0.01)
    first, second = next(results), next(results)
    assert "a_mask.png was not made by predict" in first.reason
    assert second.image == str(folder / "b.png")
    assert (out / "a_mask.png").read_text() == "mine"


def test_reading_ahead_keeps_the_order_and_each_error(tmp_path):
    seen = []

    def read(number):
        seen.append(number)
        if number == 2:
            raise BadInput("two")
        return number * 10

    found = read_ahead(range(6), read)
    assert next(found) == (0, 0)
    assert max(seen) <= DEPTH + 1
    rest = list(found)
    assert [number for number, _ in rest] == [1, 2, 3, 4, 5]
    assert str(rest[1][1]) == "two"
    assert seen == list(range(6))


def test_images_of_one_size_share_batches(tmp_path):
    from leanconv.train.inference.predict import predict

    class Counted(Bright):
        seen = []

        def forward(self, x):
            self.seen.append(tuple(x.shape))
            return super().forward(x)

    for i in range(5):
        put(tmp_path / f"{i}.png", 40 * i)
    (tmp_path / "2.png").write_bytes(b"nothing")
    Image.fromarray(np.zeros((40, 24, 3), np.uint8)).save(tmp_path / "9.png")
    net = Counted()
    found = predict(net, [tmp_path], tmp_path / "out", batch=2)
    assert [shape[0] for shape in net.seen] == [2, 2, 1]
    assert [os.path.basename(each.image) for each in found.done] == ["0.png", "1.png", "3.png", "4.png", "9.png"]
    alone = predict(Bright(), [tmp_path], tmp_path / "alone")
    for each in ("0", "1", "3", "4", "9"):
        assert (tmp_path / f"out/{each}_mask.png").read_bytes() == (tmp_path / f"alone/{each}_mask.png").read_bytes()
    assert [each.to_dict() for each in found.done] == [each.to_dict() for each in alone.done]
