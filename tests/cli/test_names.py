"""Names as file systems hold them, from folders to terminals, tables, pages and JSON: harmless, exact, never fatal."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from leanconv.runs import RunFolder

# A cursor command, a line end, a bidi control, markup, bytes that are no UTF-8, an option, spaces, a long name.
CLASSES = sorted(
    ["a\x1b[31mred", "x\ny", "\u202egnp", "[red]z[b]", os.fsdecode(b"caf\xe9"), "-dash", " lead ", "$(id)", "a" * 200]
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def data(root):
    random = np.random.default_rng(0)
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        for name in CLASSES:
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{name[:60]}{index}.png")
    return root / "data"


@pytest.fixture
def run(root, data, leanconv):
    """A run whose own name is no better, trained by the first test that asks for it."""
    folder = RunFolder(root / "run\x1b[2K\n 日本 \U0001f600\x7f")
    if not folder.metrics.is_file():
        recipe = root / "r.toml"
        recipe.write_text(
            f"model = 'leanconv:resnet20_cifar?num_classes={len(CLASSES)}&width=0.25'\n"
            "size = 16\nbatch = 4\nsteps = 1\ndevice = 'cpu'\nthreads = 1\n"
        )
        printed(*leanconv("train", recipe, f"data={data}", f"out={folder.path}"))
    return folder


def printed(code, out, err):
    """What reached the terminal, which no line of it moves."""
    assert code == 0, err
    assert all(line.isprintable() for line in f"{out}\n{err}".split("\n"))
    f"{out}{err}".encode()
    return out, err


def test_a_training_and_what_follows_it(leanconv, run, data, tmp_path):
    assert list(run.read_model().classes) == CLASSES
    out, _ = printed(*leanconv("eval", run.path))
    assert r"a\x1b[31mred" in out
    assert r"x\ny" in out
    assert r"caf\udce9" in out
    assert "[red]z[b]" in out
    _, err = printed(*leanconv("train", run.path, "--resume"))
    assert r"run\x1b[2K\n 日本 😀\x7f" in err
    printed(*leanconv("profile", run.path, "--input", "1,3,16,16", "--budget", "0.01"))
    printed(*leanconv("plan", run.path, "--input", "1,3,16,16", "--to", "hetconv"))
    printed(*leanconv("eval", run.path, "--out", tmp_path / "scores.txt"))
    assert all(line.isprintable() for line in (tmp_path / "scores.txt").read_text().split("\n"))


def test_json_has_the_very_names(leanconv, run, data, tmp_path):
    out, _ = printed(*leanconv("eval", run.path, "--json", "--per-image"))
    assert sorted(json.loads(out)["classes"]) == CLASSES
    assert {each["name"].split("/")[0] for each in json.loads(out)["per_image"]} == set(CLASSES)
    places = [data / "test" / name for name in CLASSES]
    out, _ = printed(*leanconv("predict", run.path, *places, "--out", tmp_path / "found", "--json"))
    images = [each["image"] for each in json.loads(out)["images"]]
    assert sorted(images) == sorted(str(path) for place in places for path in place.iterdir())
    assert json.loads((tmp_path / "found/predictions.json").read_text()) == json.loads(out)
    printed(*leanconv("predict", run.path, *places, "--out", tmp_path / "found"))


def test_a_page_of_them(leanconv, run, tmp_path):
    pytest.importorskip("jinja2", reason="the report needs jinja2")
    page = tmp_path / "r\x1b.html"
    printed(*leanconv("report", run.path, "--out", page, "--budget", "0", "--optimize", "0"))
    text = page.read_bytes().decode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert r"a\x1b[31mred" in text


def test_a_run_in_a_folder_that_is_no_utf8(leanconv, run, root, tmp_path):
    """Neither TOML nor the exporters' libraries take such a name; everything else does."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(run.path, odd)
    printed(*leanconv("eval", odd))
    printed(*leanconv("convert", odd, "--input", "1,3,16,16", "--to", "hetconv", "--out", f"{odd}2"))
    printed(*leanconv("profile", f"{odd}2", "--input", "1,3,16,16", "--budget", "0.01"))
    for words in (["train", odd, "--resume"], ["export", odd, odd / "m.onnx", "--outputs-only"]):
        code, _, err = leanconv(*words)
        assert code == 1
        assert "UTF-8" in err
        assert err.count("\n") == 1
    assert not (odd / "m.onnx").exists()


def test_labels_and_names_of_parquet_files(leanconv, run, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    import pyarrow.parquet as parquet

    names = [name for name in CLASSES if name.isascii() or "\udce9" not in name]
    picture = next(run.path.parent.glob("data/test/*/*.png")).read_bytes()
    rows = {"image": [picture] * len(names), "label": names}
    parquet.write_table(pyarrow.table(rows), tmp_path / "test-0.parquet")
    out, _ = printed(*leanconv("eval", run.path, "--data", tmp_path))
    assert r"a\x1b[31mred" in out
