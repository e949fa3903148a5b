"""Files for cameras: uint8 pictures of any size in, the classes of `leanconv predict` out, also where no torch is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.deploy import open_file
from leanconv.deploy.camera import Camera, Contract, _mirrored, export_camera
from leanconv.errors import ExportMismatch, UnknownName
from leanconv.models.unet import unet
from leanconv.train.data.augment import MEAN, STD, to_float
from leanconv.train.data.padding import mirror, pad_to
from leanconv.version import __version__

pytest.importorskip("onnx", reason="needs the export extra: onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
pytest.importorskip("openvino", reason="needs the export extra: openvino")

SIZES = [(1, 201, 199), (2, 200, 200), (1, 37, 53), (1, 1, 1), (3, 1, 40), (1, 4, 4), (1, 16, 8)]


def contract(**changed):
    facts = {"task": "segment", "classes": ("clean", "scratch"), "threshold": 0.37, "mean": MEAN, "std": STD}
    return Contract(**facts | {"multiple": 4} | changed)


def network(**options):
    """A U-Net whose BatchNorm has statistics, and whose decisions change over a picture."""
    torch.manual_seed(0)
    model = unet(base=4, levels=2, **options)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))
        model.eval()
        model.head.bias -= model(torch.randn(2, 3, 32, 32)).mean((0, 2, 3))
    return model


def picture(n, h, w):
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)


@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 31, 32, 33, 200])
def test_mirrors_as_the_training_does(size, multiple):
    found = _mirrored(size, multiple, torch.device("cpu"))
    assert found.tolist() == mirror(0, -(-size // multiple) * multiple, size).tolist()


@pytest.mark.parametrize(("n", "h", "w"), SIZES)
def test_camera_is_what_predict_computes_to_the_bit(n, h, w):
    model, frames = network(), picture(n, h, w)
    with torch.no_grad():
        found = Camera(model, contract()).eval()(frames)
        want = model(pad_to(to_float(frames.permute(0, 3, 1, 2).contiguous()), 4))[..., :h, :w]
    assert torch.equal(found["logits"], want)
    assert torch.equal(found["probability"], want.sigmoid())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_every_size_goes_through_the_file(suffix, tmp_path):
    camera = Camera(network(out_channels=3), contract(classes=("a", "b", "c"), threshold=None)).eval()
    result = export_camera(camera.network, camera.contract, tmp_path / f"m{suffix}")
    assert {"1x201x199", "2x200x200", "1x37x53", "1x1x1"} <= {str(each.sizes) for each in result.verified}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in result.files} >= {"infer.py"}
    form = open_file(tmp_path / f"m{suffix}")
    for sizes in SIZES:
        frames = picture(*sizes)
        with torch.no_grad():
            want = camera(frames)
        found = form(image=frames) if suffix == ".pt2" else dict(zip(("probability", "logits"), form(frames)))
        for name, tensor in want.items():
            assert found[name].shape == (*sizes[:1], 3, *sizes[1:])
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_metadata(tmp_path):
    said = contract(side=300, bits=12, classes=("clean", 'a "scratch" ü'))
    for suffix in (".onnx", ".xml", ".pt2"):
        export_camera(nn.Conv2d(3, 1, 1), said, tmp_path / f"m{suffix}")
    import openvino

    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    extra = {"leanconv.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    texts = [
        session.get_modelmeta().custom_metadata_map["leanconv"],
        openvino.Core().read_model(str(tmp_path / "m.xml")).get_rt_info(["leanconv"]).value,
        extra["leanconv.json"],
    ]
    for text in texts:
        facts = json.loads(text)
        assert facts == said.to_dict()
        assert facts["classes"] == ["clean", 'a "scratch" ü']
        assert (facts["threshold"], facts["side"], facts["bits"], facts["multiple"]) == (0.37, 300, 12, 4)
        assert facts["leanconv"] == __version__
        assert "(value / 255 - 0.5) / 0.25" in facts["preprocessing"]


def test_a_check_that_differs_leaves_nothing(tmp_path):
    (tmp_path / "infer.py").write_text("old")
    answers = iter([0.5, 0.6])
    with pytest.raises(ExportMismatch, match="nothing was written"):
        export_camera(nn.Conv2d(3, 1, 1), contract(), tmp_path / "m.onnx", check=lambda form: next(answers))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"infer.py": "old"}
    with pytest.raises(UnknownName, match=r"\.tflite"):
        export_camera(network(), contract(), tmp_path / "m.tflite")


def test_a_size_that_the_network_does_not_take_is_not_asked_of_the_file(tmp_path):
    """A network that reflects its own borders fails on one pixel, in `predict` and in the file."""

    class Reflects(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1, padding_mode="reflect")

        def forward(self, x):
            return self.conv(x)

    result = export_camera(Reflects(), contract(multiple=1), tmp_path / "m.onnx")
    assert "1x1x1" not in {str(each.sizes) for each in result.verified}


def test_a_classifier_takes_squares(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    said = contract(task="classify", classes=("x", "y", "z"), threshold=None, multiple=1, size=24)
    result = export_camera(model, said, tmp_path / "m.onnx")
    assert {str(each.sizes) for each in result.verified} == {"2x24x24", "1x24x24", "5x24x24"}
    frames = picture(7, 24, 24)
    with torch.no_grad():
        want = model(to_float(frames.permute(0, 3, 1, 2))).softmax(1)
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["probability"], {"image": frames.numpy()})
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    assert Path(tmp_path / "infer.py").is_file()
