"""A classifier from training to export, by the command line alone."""

import json
import shutil

import pytest

MODEL = "leanconv:vgg16_cifar?num_classes=3&width=0.0625&conv=hetconv(part=2)"


@pytest.fixture(scope="module")
def trained(coloured, tmp_path_factory):
    from leanconv.train.loop import fit
    from leanconv.train.recipe import Recipe

    out = tmp_path_factory.mktemp("run") / "colours"
    recipe = Recipe(
        model=MODEL,
        data=str(coloured),
        out=str(out),
        size=32,
        batch=12,
        epochs=6,
        lr=0.01,
        light=0.0,
        device="cpu",
        threads=1,
    )
    return fit(recipe, progress=False)


def test_train_says_what_it_reached(leanconv, coloured, tmp_path):
    recipe = tmp_path / "r.toml"
    words = f"model = '{MODEL}'\ndata = '{coloured}'\nout = '{tmp_path / 'run'}'\nsize = 32\nbatch = 8\nsteps = 2\n"
    recipe.write_text(words)
    code, out, err = leanconv("train", recipe, "threads=1", "device=cpu")
    assert code == 0, err
    assert "top-1" in out
    assert "IoU" not in out
    assert "classes" in err or "blue, green, red" in err
    assert leanconv("train", recipe, "threads=1", "task=segment", f"out={tmp_path / 'b'}")[0] == 1


def test_eval_and_predict(leanconv, trained, coloured, tmp_path):
    code, out, _ = leanconv("eval", trained.path, "--json", "--per-image")
    scores = json.loads(out)
    assert code == 0
    assert scores["top1"] == json.loads(trained.metrics.read_text())["test"]["top1"] > 0.6
    assert len(scores["per_image"]) == 12
    code, out, err = leanconv("eval", trained.path, "--threshold", "0.3")
    assert (code, "is for masks" in err) == (1, True)

    (tmp_path / "bad.png").write_bytes(b"nothing")
    images = sorted((coloured / "test").glob("*/*.png"))
    words = ["predict", trained.path, *images, tmp_path / "bad.png", "--out", tmp_path / "found", "--json"]
    code, out, err = leanconv(*words)
    assert code == 1
    assert err.startswith(f"error: {tmp_path / 'bad.png'}: not a readable")
    found = json.loads(out)
    assert found == json.loads((tmp_path / "found" / "predictions.json").read_text())
    hits = sum(guess["class"] == path.parent.name for guess, path in zip(found["images"], images, strict=True))
    assert hits == round(12 * scores["top1"])
    for guess in found["images"]:
        assert guess["score"] == guess["top"][0]["score"] == max(each["score"] for each in guess["top"])
        assert sum(each["score"] for each in guess["top"]) == pytest.approx(1)
    code, out, _ = leanconv("predict", trained.path, images[0], "--out", tmp_path / "one")
    assert found["images"][0]["class"] in out
    for option in ("--threshold=0.5", "--side=0", "--tile=512", "--overlap=64", "--batch=1"):
        code, out, err = leanconv("predict", trained.path, images[0], "--out", tmp_path / "two", option)
        assert (code, out) == (1, "")
        assert option.split("=")[0] in err
        assert "is for masks" in err


def test_other_classes_are_refused_and_a_subset_is_renumbered(leanconv, trained, coloured, tmp_path):
    for name in ("green", "red"):
        shutil.copytree(coloured / "test" / name, tmp_path / "some" / "test" / name)
    code, out, _ = leanconv("eval", trained.path, "--data", tmp_path / "some", "--json")
    classes = json.loads(out)["classes"]
    whole = json.loads(trained.metrics.read_text())["test"]["classes"]
    assert (code, classes["blue"]) == (0, {"accuracy": None, "images": 0})
    assert classes["red"] == whole["red"]
    (tmp_path / "some" / "test" / "red").rename(tmp_path / "some" / "test" / "violet")
    code, _, err = leanconv("eval", trained.path, "--data", tmp_path / "some")
    assert (code, "does not know 'violet'" in err) == (1, True)


@pytest.mark.parametrize("dynamic", ["", "none"])
def test_export_checks_top1(leanconv, trained, tmp_path, dynamic):
    pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
    path = tmp_path / "model.onnx"
    more = ["--raw", "--dynamic", dynamic, "--input", "4,3,32,32"] if dynamic else []
    code, out, err = leanconv("export", trained.path, path, *more)
    assert code == 0, err
    assert path.is_file()
    assert "val top-1" in out


def test_export_is_refused_where_top1_differs(leanconv, monkeypatch, trained, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
    from leanconv.train.tasks import classify

    real, calls = classify.evaluate, []

    def evaluate(*arguments, **options):
        calls.append(1)
        scores = real(*arguments, **options)
        if len(calls) == 2:  # the file
            scores.predicted.fill_(2)
        return scores

    monkeypatch.setattr(classify, "evaluate", evaluate)
    code, _, err = leanconv("export", trained.path, tmp_path / "model.onnx")
    assert code == 1
    assert "top-1" in err
    assert not (tmp_path / "model.onnx").exists()
