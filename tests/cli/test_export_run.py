"""`leanconv export RUN`: a file for camera frames, and infer.py, whose masks are `predict`'s where no torch is."""

import ast
import csv
import io
import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

from leanconv.models.unet import unet
from leanconv.runs import RunFolder

pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
pytest.importorskip("torchmetrics", reason="needs the train extra: torchmetrics")
Image = pytest.importorskip("PIL.Image", reason="needs the train extra: pillow")

RECIPE = """
model = "leanconv:unet?base=4&levels=1"
data = "{data}"
size = 32
steps = 1
"""
# infer.py in a Python that finds neither leanconv nor torch, as on the machine beside the camera.
ALONE = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"leanconv", "torch", "torchvision"}:
            raise ModuleNotFoundError(f"no module named {name} here", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def infer(script, *words):
    """Run infer.py alone: exit status, what it printed, its lines on standard error."""
    command = [sys.executable, "-I", "-c", ALONE, script, *words]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=script.parent, timeout=300)
    return found.returncode, found.stdout, found.stderr.splitlines()


def in_a_program(script, picture, name):
    """What the lines of infer.py's docstring give: the array `name`."""
    doc = ast.get_docstring(ast.parse(script.read_text()), clean=False)
    lines = [line.strip() for line in doc.splitlines() if line.startswith("    ")]
    assert lines
    text = ALONE.partition("sys.argv = ")[0] + "sys.path.insert(0, '.')\nfrom infer import *\n"
    text += "\n".join(lines).replace("PICTURE", str(picture)) + f"\nnp.save('found.npy', {name})"
    subprocess.run([sys.executable, "-I", "-c", text], cwd=script.parent, timeout=300, check=True)
    return np.load(script.with_name("found.npy"))


def segmenter(folder, *, outputs=1, classes=("background", "defect"), data="synthetic:wafer?size=48&count=30"):
    """A run as training leaves it, whose network decides differently over a picture."""
    torch.manual_seed(0)
    reference = f"leanconv:unet?base=4&levels=1&out_channels={outputs}"
    run = RunFolder(folder)
    run.write_model(reference, task="segment", classes=classes, bits=12)
    model = unet(base=4, levels=1, out_channels=outputs)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))
        model.eval()
        model.head.bias -= model(torch.randn(2, 3, 32, 32)).mean((0, 2, 3))
    run.save_model(model)
    run.recipe.write_text(RECIPE.format(data=data))
    run.metrics.write_text('{"threshold": 0.4}\n' if outputs == 1 else "{}\n")
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of odd sizes and kinds; one needs six tiles."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    sizes = {"odd": (201, 199), "small": (37, 53), "pixel": (1, 1), "line": (1, 90), "large": (530, 990)}
    for name, (h, w) in sizes.items():
        Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(random.integers(0, 256, (60, 41), dtype=np.uint8)).save(folder / "grey.bmp")
    Image.fromarray(random.integers(0, 4096, (60, 41), dtype=np.uint16)).save(folder / "twelve.tiff")
    turned = Image.Exif()
    turned[274] = 8
    Image.fromarray(random.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=turned)
    (folder / "notes.txt").write_text("no picture")
    return folder


def same_masks(predicted, found, count):
    """Assert that two folders hold the same class maps, of which some are not empty."""
    names = sorted(path.name for path in found.iterdir())
    assert len(names) == count
    for name in names:
        ours, theirs = Image.open(found / name), Image.open(predicted / name)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), name
        assert ours.convert("RGB").tobytes() == theirs.convert("RGB").tobytes(), name
    assert any(np.asarray(Image.open(found / name)).any() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_infer_writes_the_masks_of_predict_without_leanconv_and_torch(leanconv, photos, tmp_path, suffix):
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="needs the export extra: openvino")
    run = segmenter(tmp_path / "run")
    code, out, err = leanconv("export", run.path, tmp_path / "ship" / f"model{suffix}", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["metrics"]["pixels of another class"] == {"model": 0, "file": 0}
    assert 0 < found["metrics"]["val Dice"]["model"] < 1  # a score that could change
    assert {"height": 201, "width": 199} in [{k: v[k] for k in ("height", "width")} for v in found["verified"]]
    assert leanconv("predict", run.path, photos, "--out", tmp_path / "predicted")[0] == 0
    (tmp_path / "moved").mkdir()  # as it is copied to the machine beside the camera
    for path in (tmp_path / "ship").iterdir():
        path.rename(tmp_path / "moved" / path.name)
    script = tmp_path / "moved" / "infer.py"
    assert infer(script, photos, "--out", tmp_path / "masks") == (0, "", [])
    for path in (tmp_path / "predicted").iterdir():
        if not path.name.endswith("_mask.png"):
            path.unlink()
    same_masks(tmp_path / "predicted", tmp_path / "masks", 8)
    seen = in_a_program(script, photos / "odd.png", "classes")
    assert (seen * 255 == np.asarray(Image.open(tmp_path / "masks" / "odd_mask.png"))).all()
    # Another threshold, and nothing is lost by a second run.
    before = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    code, _, err = infer(script, photos / "odd.png", photos / "small.png", "--out", tmp_path / "masks")
    assert (code, len(err)) == (1, 2)
    assert all("is there already" in line for line in err)
    assert {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()} == before
    leanconv("predict", run.path, photos / "odd.png", "--threshold", "0.55", "--out", tmp_path / "p2")
    assert infer(script, photos / "odd.png", "--threshold=0.55", "--out", tmp_path / "m2") == (0, "", [])
    same_masks(tmp_path / "p2", tmp_path / "m2", 1)
    assert (tmp_path / "m2" / "odd_mask.png").read_bytes() != before["odd_mask.png"]


@pytest.mark.slow
def test_several_classes_of_reduced_pictures(leanconv, photos, tmp_path):
    """K logits, the palette of `predict`, and a run that sees pictures reduced to 64 pixels."""
    data = "synthetic:wafer?size=48&count=30&side=64"
    classes = ("background", "scratch", "stain")
    run = segmenter(tmp_path / "run", outputs=3, classes=classes, data=data)
    code, _, err = leanconv("export", run.path, tmp_path / 'a "b" \\N{x} """.onnx', "--outputs-only")
    assert code == 0, err
    pictures = [photos / name for name in ("odd.png", "small.png", "pixel.png", "turned.jpg", "line.png")]
    assert leanconv("predict", run.path, *pictures, "--out", tmp_path / "predicted")[0] == 0
    assert infer(tmp_path / "infer.py", *pictures, "--out", tmp_path / "masks") == (0, "", [])
    same_masks(tmp_path / "predicted", tmp_path / "masks", 5)
    mask = np.asarray(Image.open(tmp_path / "masks" / "odd_mask.png"))
    assert len(np.unique(mask)) > 2
    assert (in_a_program(tmp_path / "infer.py", photos / "odd.png", "classes") == mask).all()


@pytest.mark.slow
def test_bad_pictures_are_one_line_each_and_the_others_are_written(leanconv, photos, tmp_path):
    run = segmenter(tmp_path / "run")
    stored = json.loads(run.model_json.read_text())
    del stored["bits"]  # trained on 8 bits
    run.model_json.write_text(json.dumps(stored))
    assert leanconv("export", run.path, tmp_path / "m.onnx", "--outputs-only")[0] == 0
    (tmp_path / "broken.png").write_bytes((photos / "odd.png").read_bytes()[:900])
    pictures = [tmp_path / "broken.png", tmp_path / "none.png", photos / "twelve.tiff", photos / "pixel.png"]
    code, out, err = infer(tmp_path / "infer.py", *pictures, "--out", tmp_path / "masks")
    assert (code, out, len(err)) == (1, "", 3)
    assert [line.split(":")[1].strip().split("/")[-1] for line in err] == ["broken.png", "none.png", "twelve.tiff"]
    assert "16 bits" in err[2]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["pixel_mask.png"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "pixel.jpg").write_bytes((photos / "turned.jpg").read_bytes())
    for words, says in [
        ((photos / "pixel.png", tmp_path / "again" / "pixel.jpg"), "one name"),
        ((photos, "--out", photos), "holds the pictures"),
        ((tmp_path / "again" / "none",), "none"),
    ]:
        code, out, err = infer(tmp_path / "infer.py", *words)
        assert (code, out) == (1, "")
        assert says in err[0]
    (tmp_path / "m.onnx").write_bytes(b"no model")
    code, out, err = infer(tmp_path / "infer.py", photos / "pixel.png")
    assert (code, out, len(err)) == (1, "", 1)


@pytest.mark.slow
def test_a_classifier_prints_what_predict_finds(leanconv, coloured, tmp_path):
    from leanconv.runs import load

    run = RunFolder(tmp_path / "run")
    reference = "leanconv:vgg16_cifar?num_classes=3&width=0.0625"
    run.write_model(reference, task="classify", classes=("blue", "green", "red"))
    run.save_model(load(reference))
    run.recipe.write_text(f'model = "{reference}"\ndata = "{coloured}"\nsize = 32\nsteps = 1\ntask = "classify"\n')
    code, out, err = leanconv("export", run.path, tmp_path / "ship" / "model.onnx", "--json")
    assert code == 0, err
    assert "val top-1" in json.loads(out)["metrics"]
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for h, w in ((70, 45), (33, 90), (32, 32), (1, 1), (20, 31)):
        picture = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{h}x{w}.png")
    code, out, _ = leanconv("predict", run.path, tmp_path / "photos", "--out", tmp_path / "found", "--json")
    assert code == 0
    code, printed, err = infer(tmp_path / "ship" / "infer.py", tmp_path / "photos")
    assert (code, err) == (0, [])
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["file"] for row in rows] == [each["image"] for each in json.loads(out)["images"]]
    assert [row["class"] for row in rows] == [each["class"] for each in json.loads(out)["images"]]
    for row, each in zip(rows, json.loads(out)["images"], strict=True):
        assert float(row["score"]) == pytest.approx(each["score"], abs=1e-4)
    scores = in_a_program(tmp_path / "ship" / "infer.py", tmp_path / "photos" / "70x45.png", "scores")
    asked = next(each for each in json.loads(out)["images"] if each["image"].endswith("70x45.png"))
    assert scores.max() == pytest.approx(asked["score"], abs=1e-4)


@pytest.mark.slow
def test_a_file_with_other_classes_is_not_written(leanconv, tmp_path, monkeypatch):
    """The outputs match on random inputs; on real images the file then says something else."""
    room = import_module("leanconv.train.inference.contract")
    run, real, asked = segmenter(tmp_path / "run"), room.other_pixels, []

    def other_pixels(network, form, image, threshold):
        asked.append(tuple(image.shape[1:]))
        return real(network, form, image, threshold) if type(form).__name__ == "Camera" else 1

    monkeypatch.setattr(room, "other_pixels", other_pixels)
    code, _, err = leanconv("export", run.path, tmp_path / "ship" / "m.onnx")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "another class than by leanconv predict" in err
    assert "nothing was written" in err
    assert not list((tmp_path / "ship").iterdir())
    assert {(48, 48), (37, 48), (1, 1)} <= set(asked)


def test_pixels_of_another_class_are_counted():
    from leanconv.deploy.camera import Camera, Contract
    from leanconv.train.inference.contract import other_pixels

    torch.manual_seed(0)
    model = unet(base=4, levels=1).eval()
    said = Contract("segment", ("a", "b"), 0.5, 0.5, 0.25, multiple=2)
    image = torch.randint(0, 256, (3, 41, 37), dtype=torch.uint8)
    with torch.no_grad():
        model.head.bias -= model(torch.randn(1, 3, 40, 40)).median()
        assert other_pixels(model, Camera(model, said).eval(), image, 0.5) == 0
        shifted = unet(base=4, levels=1).eval()
        shifted.load_state_dict(model.state_dict())
        shifted.head.bias += 0.05
        assert other_pixels(model, Camera(shifted, said).eval(), image, 0.5) > 0


def test_one_line_for_what_is_wrong(leanconv, tmp_path):
    run = segmenter(tmp_path / "run")
    words = ["export", run.path, tmp_path / "ship" / "m.onnx"]
    stored = json.loads(run.model_json.read_text())

    def refused(*more, says, code=1):
        found, out, err = leanconv(*words, *more)
        assert (found, out, len(err.splitlines())) == (code, "", 1), err
        assert says in err
        assert not (tmp_path / "ship").exists()

    refused("--input", "1,3,32,32", says="--raw")
    refused("--dynamic", "batch", says="--raw")
    # The run's classes were changed by hand.
    run.model_json.write_text(json.dumps(stored | {"classes": ["clean", "scratch", "stain"]}))
    refused(says="names 3 classes (clean, scratch, stain), the network has 1 outputs")
    run.model_json.write_text(json.dumps(stored))
    run.recipe.unlink()
    refused(says="give --data, or --outputs-only")
    run.model_json.write_text(json.dumps(stored | {"task": "classify"}))
    refused("--outputs-only", says="no recipe.toml")
    run.model_json.write_text(json.dumps(stored))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "infer.py").write_text("print('mine')\n")
    words[2] = tmp_path / "other" / "m.onnx"
    refused("--outputs-only", says="infer.py is there already")
    assert (tmp_path / "other" / "infer.py").read_text() == "print('mine')\n"
    words[1:3] = ["leanconv:unet", tmp_path / "n.onnx", "--raw"]
    refused(says="is for run folders")
