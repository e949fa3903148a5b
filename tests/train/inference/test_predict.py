"""Prediction: tiles equal the whole, weights add up to one, memory stays bounded, components equal a flood fill."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from leanconv.errors import BadInput
from leanconv.models import build
from leanconv.train.data.augment import to_float
from leanconv.train.data.image_reader import read_image
from leanconv.train.data.padding import mirror
from leanconv.train.data.samples import open_data
from leanconv.train.inference.predict import overlay, predict
from leanconv.train.inference.tiles import _Axis, predict_logits

SIZES = [(1, 1), (1, 200), (200, 1), (33, 65), (64, 64), (97, 130), (160, 96)]


class Convs(nn.Module):
    """A net that sees 5 pixels around each, through a pooling grid of 2."""

    size_multiple = 8

    def __init__(self, outputs=2):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, outputs, 3, padding=1),
        )

    def forward(self, x):
        return self.body(x)


class Constant(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 2, *x.shape[2:]), 3.25)


def image_of(h, w, seed=0):
    return torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, 32), (96, 50), (32, 0), (512, 64)])
def test_weights_add_up_to_one(size, tile, overlap):
    logits = predict_logits(Constant(), image_of(*size), tile=tile, overlap=overlap, batch=3)
    assert tuple(logits.shape) == (2, *size)
    torch.testing.assert_close(logits, torch.full_like(logits, 3.25), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("tile", "overlap", "batch"), [(32, 24, 1), (64, 24, 4), (64, 32, 2)])
def test_tiles_equal_the_whole_for_a_net_that_looks_no_further_than_a_quarter_overlap(size, tile, overlap, batch):
    net, image = Convs().eval(), image_of(*size)
    tiled = predict_logits(net, image, tile=tile, overlap=overlap, batch=batch)
    rows, columns = (mirror(0, -(-n // 8) * 8, n) for n in size)
    with torch.no_grad():
        whole = net(to_float(image[:, rows][:, :, columns])[None])[0, :, : size[0], : size[1]]
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


def test_seams_are_blended_where_tiles_disagree():
    """A model whose answer is the tile's own mean: neighbouring pixels still differ by no more than the ramp's step."""

    class Mean(nn.Module):
        size_multiple = 8

        def forward(self, x):
            return x.mean((1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])

    image = image_of(64, 300)
    image[:, :, 150:] //= 4
    logits = predict_logits(Mean(), image, tile=64, overlap=32)[0]
    step = (logits[:, 1:] - logits[:, :-1]).abs().max()
    assert 0 < step <= (logits.max() - logits.min()) / 12


@pytest.mark.parametrize("length", [*range(1, 70, 3), 511, 512, 513, 1000])
@pytest.mark.parametrize(("tile", "overlap", "unit"), [(64, 16, 8), (64, 40, 16), (100, 7, 1), (16, 0, 16)])
def test_tiles_of_an_axis(length, tile, overlap, unit):
    axis = _Axis.of(length, tile, overlap, unit)
    padded = -(-length // unit) * unit
    assert all(start % unit == 0 for start in axis.starts)
    assert axis.starts[-1] + len(axis.pixels[-1]) == padded
    assert all(len(pixels) == min(padded, -(-tile // unit) * unit) for pixels in axis.pixels)
    ends = [start + len(pixels) for start, pixels in zip(axis.starts, axis.pixels, strict=True)]
    assert all(end - start >= overlap for end, start in zip(ends, axis.starts[1:], strict=False))
    total = torch.zeros(length)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert weight.min() >= 0
        total[start : start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(length))


def test_modes_and_batchnorm_are_as_before():
    net = Convs().train()
    net.body[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    predict_logits(net, image_of(40, 40))
    assert net.training
    assert not net.body[1].training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_real_unet_takes_any_size():
    net = build("unet", base=4, levels=3, conv="splconv").eval()
    assert tuple(predict_logits(net, image_of(45, 101), tile=48, overlap=16).shape) == (1, 45, 101)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"overlap": 64, "tile": 64}, "overlap=64 leaves nothing of tile=64: at most 56"), ({"tile": 0}, "tile=0"),
     ({"overlap": -1}, "overlap=-1"), ({"batch": 0}, "batch=0")],
)  # fmt: skip
def test_impossible_tiles(options, says):
    with pytest.raises(BadInput, match=says):
        predict_logits(Convs(), image_of(200, 200), **options)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(BadInput, match="logits of the same H W"):
        predict_logits(nn.Conv2d(3, 1, 3, stride=2), image_of(64, 64))
    with pytest.raises(BadInput, match="one image C H W"):
        predict_logits(Convs(), image_of(8, 8)[None])


@pytest.mark.slow
def test_2048_squared_fits_in_two_gibibytes():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from leanconv.models import build\n"
        "from leanconv.train.inference.predict import overlay\n"
        "from leanconv.train.inference.tiles import predict_logits\n"
        "from leanconv.train.inference.defects import judge\n"
        "from leanconv.train.tasks.decision import Decision, Rule\n"
        "image = torch.randint(0, 256, (3, 2048, 2048), dtype=torch.uint8)\n"
        "logits = predict_logits(build('unet', base=4, levels=3).eval(), image)\n"
        "decision = Decision(threshold=float(logits.median().sigmoid()), rule=Rule(min_area=4, merge=4))\n"
        "mask, shown, found = judge('x', logits, decision); overlay(image, shown)\n"
        "assert found.defects\n"
        "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')])"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2 * 2**20  # KiB


def test_overlay():
    image, mask = image_of(20, 30), torch.zeros(20, 30, dtype=torch.uint8)
    mask[5:12, 6:20] = 1
    shown = np.asarray(overlay(image, mask))
    untouched = mask.numpy() == 0
    np.testing.assert_array_equal(shown[untouched], image.permute(1, 2, 0).numpy()[untouched])
    assert (shown != image.permute(1, 2, 0).numpy()).any(2)[5:12, 6:20].all()
    assert len(np.unique(shown[5, 6:20], axis=0)) == 1  # the outline has one colour


# The whole way


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(image_of(40, 56, i).permute(1, 2, 0).numpy()).save(folder / f"p{i}.png")
    return folder


def bright(outputs=1):
    """A net whose first logit is the red channel."""
    net = nn.Conv2d(3, outputs, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    net.weight.data[0, 0] = 1.0
    return net


def test_files_agree_with_each_other_and_with_the_model(pictures, tmp_path):
    found = predict(bright(), [pictures], tmp_path / "out", threshold=0.7, tile=32, overlap=0)
    assert not found.failed
    assert len(found.done) == 3
    for i in range(3):
        red = to_float(image_of(40, 56, i))[0]
        mask = np.asarray(Image.open(tmp_path / "out" / f"p{i}_mask.png"))
        np.testing.assert_array_equal(mask, (red.sigmoid() >= 0.7).numpy() * 255)
        assert tuple(read_image(tmp_path / "out" / f"p{i}_overlay.png", "overlay").shape) == (3, 40, 56)
        listed = json.loads((tmp_path / "out" / f"p{i}.json").read_text())
        assert listed == found.done[i].to_dict()
        assert listed["threshold"] == 0.7
        assert listed["defect_area_px"] == (mask > 0).sum() == sum(d["area_px"] for d in listed["defects"])
    assert "3 of 3 images written" in str(found)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["defects.csv", "verdicts.csv"]
        + [f"p{i}{end}" for i in range(3) for end in (".json", "_mask.png", "_overlay.png")]
    )


def test_masks_of_several_classes_read_back(pictures, tmp_path):
    net = bright(4)
    net.weight.data[1, 1] = net.weight.data[2, 2] = 1.5
    predict(net, [pictures / "p0.png"], tmp_path / "masks")
    (tmp_path / "train" / "images").mkdir(parents=True)
    (tmp_path / "train" / "masks").mkdir()
    (pictures / "p0.png").rename(tmp_path / "train" / "images" / "p0.png")
    (tmp_path / "masks" / "p0_mask.png").rename(tmp_path / "train" / "masks" / "p0.png")
    sample = open_data(f"{tmp_path}?classes=4", "train")[0]
    with torch.no_grad():
        assert torch.equal(sample.mask.long(), net(to_float(sample.image)[None]).argmax(1)[0])


def test_masks_of_many_classes_read_back(pictures, tmp_path):
    """Each class has a colour of its own: a mask whose palette repeats one is refused."""
    truth = np.arange(40 * 56).reshape(40, 56) % 12

    class Told(nn.Module):
        def forward(self, x):
            shown = torch.nn.functional.one_hot(torch.from_numpy(truth), 12).movedim(2, 0)[None].float()
            return torch.nn.functional.pad(shown, (0, x.shape[3] - 56, 0, x.shape[2] - 40))

    predict(Told(), [pictures / "p0.png"], tmp_path / "masks")
    for kind, source in {"images": pictures / "p0.png", "masks": tmp_path / "masks/p0_mask.png"}.items():
        (tmp_path / "train" / kind).mkdir(parents=True)
        source.rename(tmp_path / "train" / kind / "p0.png")
    np.testing.assert_array_equal(open_data(f"{tmp_path}?classes=12", "train")[0].mask, truth)


def test_one_bad_image_costs_no_other(pictures, tmp_path):
    (pictures / "p1.png").write_bytes((pictures / "p1.png").read_bytes()[:500])
    found = predict(bright(), [pictures, tmp_path / "gone.png"], tmp_path / "out")
    assert [p.image for p in found.done] == [str(pictures / "p0.png"), str(pictures / "p2.png")]
    assert [image for image, _ in found.failed] == [str(pictures / "p1.png"), str(tmp_path / "gone.png")]
    assert "corrupt or truncated" in found.failed[0][1]
    assert "No such file" in found.failed[1][1]
    assert not list((tmp_path / "out").glob("p1*"))


def test_what_no_image_can_be_blamed_for(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for images, options, says in [
        ([], {}, "at least one image"),
        ([tmp_path / "empty"], {}, "no images"),
        ([pictures, "elsewhere/p0.jpg"], {}, "have one stem"),
        ([pictures], {"threshold": 1.5}, "threshold=1.5"),
    ]:
        with pytest.raises(BadInput, match=says):
            predict(bright(), images, tmp_path / "out", **options)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written"):
        predict(bright(), [pictures], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"
    with pytest.raises(BadInput, match="run folder does not exist"):
        predict(tmp_path / "norun", [pictures], tmp_path / "out")


class Bright(nn.Module):
    """Says "defect" where a pixel is bright, and keeps the size of what it saw."""

    def forward(self, x):
        self.seen = tuple(x.shape[-2:])
        return x.mean(1, keepdim=True)


def test_masks_of_reduced_images_have_the_images_own_size(tmp_path):
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[12:36, 30:60] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    net = Bright().eval()
    found = predict(net, [tmp_path / "a.png"], tmp_path / "out", side=30)
    assert max(net.seen) < 60  # tiles are rounded up, but the image was 20 x 30
    assert (found.done[0].width, found.done[0].height) == (90, 60)
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png")) > 0
    truth = picture[..., 0] > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95
    predict(net, [tmp_path / "a.png"], tmp_path / "whole", side=0)
    assert min(net.seen) >= 60


def test_a_run_predicts_at_the_size_it_was_trained_at(tiny_data, tmp_path, monkeypatch):
    from leanconv.train.inference import work as module
    from leanconv.train.loop import fit
    from leanconv.train.recipe import Recipe

    recipe = Recipe(
        model="leanconv:unet?base=2&levels=2",
        data=f"{tiny_data}?side=24",
        out=str(tmp_path / "run"),
        size=16,
        batch=2,
        steps=1,
        device="cpu",
        threads=1,
    )
    folder, seen = fit(recipe, progress=False), []
    real = module.logits_alike
    monkeypatch.setattr(
        module,
        "logits_alike",
        lambda model, images, **rest: (seen.append(images[0].shape[1:]), real(model, images, **rest))[1],
    )
    picture = next((tiny_data / "test" / "images").iterdir())
    predict(folder.path, [picture], tmp_path / "a")
    predict(folder.path, [picture], tmp_path / "b", side=0)
    assert max(seen[0]) == 24
    assert max(seen[1]) >= 44
