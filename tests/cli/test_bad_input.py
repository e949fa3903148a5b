"""What a user can get wrong, typed as a user types it: one clear line, no traceback, a non-zero exit, nothing lost."""

import json
import os
import resource
import shutil
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.cli.main import main
from leanconv.runs import RunFolder, load
from leanconv.train.data import samples

UNET = "leanconv:unet?base=2&levels=2"


@pytest.fixture
def refused(leanconv):
    """Call the command line; the one line that it leaves on standard error."""

    def call(*words, status=1):
        code, _, err = leanconv(*words)
        assert code == status, err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "a fault of leanconv" not in err
        assert "Traceback" not in err
        return err

    return call


@pytest.fixture
def images(tiny_data, tmp_path):
    """A data folder of one's own to spoil."""
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def recipe(images, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"model = '{UNET}'\ndata = '{images}'\nout = '{tmp_path / 'out'}'\n"
        "size = 24\nbatch = 5\nsteps = 4\ndevice = 'cpu'\nthreads = 1\n"
    )
    return path


@pytest.fixture
def run(images, tmp_path):
    """A run folder with weights, as far as `eval` and `predict` look at it."""
    folder = RunFolder(tmp_path / "run")
    folder.write_model(UNET)
    folder.recipe.write_text(f"data = '{images}'\nsteps = 1\n")
    folder.save_model(load(UNET))
    folder.metrics.write_text('{"threshold": 0.5}')
    return folder


def corrupt(root):
    (root / "images/2.png").write_bytes(b"this is no image")


def truncated(root):
    content = (root / "images/2.png").read_bytes()
    (root / "images/2.png").write_bytes(content[: len(content) // 2])


def bomb(root):
    content = bytearray((root / "images/2.png").read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (root / "images/2.png").write_bytes(content)


def other_size(root):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks/2.png")


def greys(root):
    Image.fromarray(np.asarray(Image.open(root / "images/2.png").convert("L"))).save(root / "masks/2.png")


def fractions(root):
    Image.open(root / "images/2.png").convert("F").save(root / "images/2.tif")
    (root / "images/2.png").unlink()


def no_mask(root):
    (root / "masks/2.png").unlink()


def empty(root):
    for path in (root / "images").iterdir():
        path.unlink()


BAD_DATA = [
    (corrupt, "images/2.png: not a readable PNG"),
    (truncated, "images/2.png: corrupt or truncated image"),
    (bomb, "images/2.png: more than 178956970 pixels"),
    (other_size, "masks/2.png: the mask is 9x9"),
    (greys, "masks/2.png: non-binary mask"),
    (fractions, "images/2.tif: 1 channels of kind F"),
    (no_mask, "no mask for 1 of 5 images: 2.png"),
    (empty, "images: no images"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD_DATA, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_data(refused, recipe, run, images, tmp_path, spoil, says):
    """Also in the test split, which a training may lack but not have damaged."""
    spoil(images / "test")
    assert says in refused("train", recipe, "--quiet")
    assert not (tmp_path / "out").exists()
    assert says in refused("eval", run.path)


def test_several_bad_files_are_a_line_each(leanconv, recipe, run, images, tmp_path):
    for index in (3, 11):
        path = images / f"train/images/{index}.png"
        path.write_bytes(path.read_bytes()[:-200])
    (images / "test/images/0.png").write_bytes(b"nothing\x1b[2J")
    for words in (("train", recipe, "--quiet"), ("eval", run.path, "--split", "train")):
        code, _, err = leanconv(*words)
        assert code == 1
        count = 3 if "--quiet" in words else 2
        lines = err.splitlines()
        assert lines[0] == f"error: {count} of {31 if count == 3 else 20} images cannot be used"
        assert [line.split(": ")[0] for line in lines[1:3]] == [f"  {images}/train/images/{i}.png" for i in (11, 3)]
        assert len(lines) == count + 1
    assert not (tmp_path / "out").exists()


def test_predict_goes_on_without_the_images_that_it_cannot_use(leanconv, run, images, tmp_path):
    folder = images / "test/images"
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-40])
    Image.new("L", (60_000, 1)).save(folder / "strip.png")
    # On a busy machine a race of engines would begin, and PyTorch's compiler writes to stderr.
    code, out, err = leanconv("predict", run.path, folder, "--out", tmp_path / "found", "--engine", "eager")
    assert code == 1
    assert err == f"error: {folder}/0.png: corrupt or truncated image: image file is truncated\n"
    assert "5 of 6 images written" in out
    assert {path.stem for path in (tmp_path / "found").glob("*.json")} == {"1", "2", "3", "4", "strip"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_damaged_during_the_training(refused, recipe, images, monkeypatch, workers):
    """It was whole when all were looked at; a worker process must not send its traceback."""
    monkeypatch.setattr(samples, "CACHE_BYTES", 0)
    check = samples.Samples.check

    def damage(samples, **options):
        check(samples, **options)
        for index in range(20):
            path = images / f"train/images/{index}.png"
            path.write_bytes(path.read_bytes()[:900])

    monkeypatch.setattr(samples.Samples, "check", damage)
    assert "png: corrupt or truncated image" in refused("train", recipe, "--quiet", f"workers={workers}")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["lr_=1"], 2, "did you mean 'lr'?"),
        (["model=leanconv:unet?conv=splonv"], 2, "did you mean 'splconv'?"),
        (["model=leanconv:unet?conv=nothing"], 2, "known: "),
        (["model=leanconv:unet?base=2&levels=2&in_channels=1"], 1, "C=1, got (1, 3, 24, 24)"),
        (["model=leanconv:unet?base=2&levels=2&out_channels=3"], 1, "or say out_channels=1 there"),
        (["light=1.5"], 1, "light=1.5"),
        (["defect_crop=2"], 1, "defect_crop=2.0"),
        (["seed=99999999999999999999"], 1, "seed has 20 digits"),
        (["seed=1" + "0" * 400], 1, "seed has 401 digits"),
        (["batch=1", "size=4"], 1, "take a larger batch or size"),
    ],
)
def test_settings_are_refused_before_the_folder_is_taken(refused, recipe, tmp_path, words, status, says):
    assert says in refused("train", recipe, "--quiet", *words, status=status)
    assert not (tmp_path / "out").exists()


def pickle_in_disguise(folder):
    torch.save({"w": torch.ones(1)}, folder.weights)


def other_model(folder):
    other = RunFolder(folder.path.parent / "other")
    other.save_model(load("leanconv:unet?base=3&levels=2"))
    other.weights.replace(folder.weights)


def somebodys_code(folder):
    marker = folder.path.parent / "ran"
    (folder.path.parent / "net.py").write_text(f"open({str(marker)!r}, 'w')\n")
    stored = json.loads(folder.model_json.read_text())
    folder.model_json.write_text(json.dumps(stored | {"reference": f"{folder.path.parent / 'net.py'}:net"}))


def one_channel(folder):
    folder.write_model(UNET + "&in_channels=1")
    folder.save_model(load(UNET + "&in_channels=1"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (pickle_in_disguise, "it holds a pickle, which can run code; it was not opened"),
        (other_model, "these are another model's weights"),
        (somebodys_code, "say --trust-code"),
        (one_channel, "C=1, got"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_that_is_not_what_it_seems(refused, run, images, tmp_path, spoil, says):
    spoil(run)
    assert says in refused("eval", run.path)
    assert says in refused("predict", run.path, images / "test/images", "--out", tmp_path / "found")
    assert not (tmp_path / "found").exists()
    assert not (tmp_path / "ran").exists()


def test_predictions_do_not_overwrite_what_lies_beside_the_images(refused, run, images):
    folder = images / "test/images"
    (folder / "0.json").write_text("annotations of hours")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "holds the images themselves" in refused("predict", run.path, folder / "0.png", "--out", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk(refused, recipe, run, images, tmp_path):
    """The largest file that may be written stands for the disk."""
    kept = tmp_path / "scores.txt"
    kept.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        refusals = [
            refused("train", recipe, "--quiet"),
            refused("predict", run.path, images / "test/images/0.png", "--out", tmp_path / "found"),
            refused("eval", run.path, "--out", kept),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all("File too large" in line for line in refusals)
    assert kept.read_text() == "old"
    assert not list(tmp_path.rglob(".*")), "a half-written file stayed"


def test_scores_are_printed_even_where_they_cannot_be_written(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leanconv", "eval", str(run.path), "--out", os.devnull + "/scores.json"])
    with pytest.raises(SystemExit) as leaving:
        main()
    out, err = capsys.readouterr()
    assert leaving.value.code == 1
    assert "cannot be written" in err
    assert "mean over classes" in out
