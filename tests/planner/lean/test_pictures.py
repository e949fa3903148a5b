"""Images without labels: what counts as such, the fit and the recovery against the dense network, the agreement."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.pictures import PictureSubject
from leanconv.planner.lean.stages import Stages
from leanconv.planner.lean.whole import make_lean
from leanconv.runs import load
from leanconv.train.data.unlabelled import is_unlabelled
from leanconv.train.progress import Reporter

NETWORK = "leanconv:unet?base=4&levels=1"


@pytest.fixture
def images(coloured, tmp_path):
    """A folder of 36 images of 16 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (coloured / "train").rglob("*.png"):
        shutil.copy(path, folder / f"{path.parent.name}{path.name}")
    return folder


@pytest.fixture
def asked(images, tmp_path):
    return Asked(
        model=NETWORK,
        out=str(tmp_path / "out"),
        data=str(images),
        to="depthwise_separable",
        size=16,
        epochs=20,
    )


def test_which_folders_are_unlabelled(images, coloured, tiny_data, tmp_path):
    assert is_unlabelled(str(images))
    for other in ("", "synthetic:wafer", str(coloured), str(tiny_data), str(tmp_path / "nothing"), str(tmp_path)):
        assert not is_unlabelled(other)


def test_a_model_of_somebody_and_a_folder_of_images(asked, way, images):
    stages = Stages(race=way.stages().race)
    report = make_lean(asked, stages=stages, progress=False)
    found = report.stages
    assert report.facts == report.facts | {"measure": "Dice with the dense"}
    assert "8 images that the fit did not see" in report.facts["judged"]
    assert found["dense"]["score"] == 1
    assert {layer["how"] for layer in found["fit"]["layers"]} == {"fitted"}
    dense, fitted, recovered = (load(f"{asked.out}/stages/{name}").eval() for name in ("dense", "fit", "recover"))
    kept = PictureSubject(asked, place(asked), Reporter(active=False, visible=False), trust_code=False)
    x = torch.cat(list(kept.calibration()))
    with torch.no_grad():
        wanted = dense(x)
        errors = [float((network(x) - wanted).norm() / wanted.norm()) for network in (fitted, recovered)]
    assert errors[1] < 1.5 * errors[0]  # a fit ends with steps of the whole network, and leaves little to win
    assert not torch.equal(fitted(x), recovered(x))
    with torch.no_grad():
        assert torch.equal(load(asked.out)(x), recovered(x) if report.best == "recover" else fitted(x))


def place(asked):
    """Where the dense network is stored."""
    return Path(asked.out) / "stages" / "dense"


def test_one_image(asked, images, capsys):
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    subject = PictureSubject(asked, place(asked), Reporter(active=True, visible=True), trust_code=False)
    assert "the agreement is flattered" in capsys.readouterr().err
    assert len(subject.calibration()) == 1
    assert subject.score(subject.network).value == 1


def test_a_broken_image_is_named(asked, images):
    bad = sorted(images.iterdir())[1]
    bad.write_bytes(b"no picture")
    subject = PictureSubject(asked, place(asked), Reporter(active=False, visible=False), trust_code=False)
    with pytest.raises(BadInput, match=bad.name):
        subject.calibration()


def test_a_network_that_takes_no_such_images(asked, tmp_path):
    with pytest.raises(BadInput, match="takes N C H W with C=3"):
        make_lean(replace(asked, input=(1, 5, 16, 16)), stages=Stages(), progress=False)
