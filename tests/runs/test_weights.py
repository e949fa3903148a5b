"""Weights: what is saved comes back, everything else is named, nothing is unpickled."""

import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.models import build
from leanconv.runs import load_weights, save_weights
from leanconv.runs.weights import read_tensors


def unet(**options):
    return build("unet", base=2, levels=1, **options)


class Tied(nn.Module):
    """A weight under two names, and a view that shares its storage."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("rows", self.embed.weight.detach()[2:4])
        self.register_buffer("empty", torch.zeros(0))


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)


def test_what_is_saved_comes_back(tmp_path):
    model, other = unet(conv="splconv"), unet(conv="splconv")
    for buffer in model.buffers():
        buffer.random_(1, 9)
    assert not same(model, other)
    load_weights(other, save_weights(model, tmp_path / "deep" / "w.safetensors"))
    assert same(model, other)


def test_others_may_read_it_as_they_may_any_file(tmp_path):
    (tmp_path / "other").touch()
    assert save_weights(nn.Linear(2, 2), tmp_path / "w").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    model, other = Tied(), Tied()
    path = save_weights(model, tmp_path / "w.safetensors")
    assert path.stat().st_size < 2 * 24 * 4 + 400
    load_weights(other, path)
    assert same(model, other)
    assert other.head.weight is other.embed.weight


def test_layout_wrapper_and_half_precision(tmp_path):
    model = unet().to(memory_format=torch.channels_last).bfloat16()
    path = save_weights(torch.compile(model, backend="eager"), tmp_path / "w.safetensors")
    other = unet()
    load_weights(other, path)
    assert other.head.weight.dtype == torch.float32
    assert same(model.float(), other)
    load_weights(torch.compile(unet(), backend="eager"), path)


def test_an_older_file_survives_a_failed_write(tmp_path):
    path = save_weights(unet(), tmp_path / "w.safetensors")
    before = path.read_bytes()
    with torch.device("meta"):
        ghost = unet()
    with pytest.raises(BadInput, match=r"encoder.level1.conv1.weight: a tensor without data"):
        save_weights(ghost, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_an_older_file_survives_a_full_disk(tmp_path, monkeypatch, error):
    path = save_weights(unet(), tmp_path / "w.safetensors")
    before = path.read_bytes()

    def half(tensors, temporary, metadata):
        Path(temporary).write_bytes(before[:100])
        raise error

    monkeypatch.setattr("leanconv.runs.weights.save_file", half)
    with pytest.raises(BadInput, match=r"cannot be written: .*o space.*; the old file, if any, is untouched"):
        save_weights(unet(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Extra(2, 2), "_extra_state: extra state of type dict"),
        (nn.LazyLinear(3), "weight: a lazy parameter.*run the model once"),
    ],
)
def test_state_that_is_no_tensor_is_refused(tmp_path, model, says):
    with pytest.raises(BadInput, match=says):
        save_weights(model, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"conv": "splconv"},
            "it lacks encoder.level1.conv2.stencil1.weight, .* and 33 more; it has besides decoder.level1.conv1",
        ),
        ({"out_channels": 2}, "other sizes head.weight is 1x2x1x1, not 2x2x1x1, head.bias is 1, not 2"),
    ],
)
def test_another_models_weights_change_nothing(tmp_path, other, says):
    path = save_weights(unet(), tmp_path / "w.safetensors")
    model = unet(**other)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BadCheckpoint, match=says):
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_number_type_is_named(tmp_path):
    save_file({"weight": torch.zeros(2, 2, dtype=torch.int32), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadCheckpoint, match="other number types weight is int32, not float32"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


class Bomb:
    """What a pickle does when it is opened: it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_in_disguise_is_never_opened(tmp_path, protocol):
    fired = tmp_path / "fired"
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Bomb(fired), protocol=protocol))
    with pytest.raises(BadCheckpoint, match=r"pickle|damaged"):
        load_weights(nn.Linear(1, 1), tmp_path / "w.safetensors")
    assert not fired.exists()
    pickle.loads((tmp_path / "w.safetensors").read_bytes())
    assert fired.exists(), "the bomb itself must work, or this test shows nothing"


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save_in_disguise_is_never_opened(tmp_path, zipped):
    fired, path = tmp_path / "fired", tmp_path / "w.safetensors"
    torch.save({"weight": Bomb(fired)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        BadCheckpoint, match=r"no safetensors file but .* pickle, which can run code; it was not opened"
    ):
        load_weights(nn.Linear(1, 1), path)
    assert not fired.exists()


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"abc", "damaged or truncated"),
        (b"\x1f\x8b\x08" + b"0" * 80, "a gzip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (header(b"{}", 2**60), "damaged"),
        (header(b"{}", 200), "damaged"),
        (header(b"not json"), "damaged"),
        (header(b'{"weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'), "damaged"),
        (header(b'{"weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,4]}}') + b"0000", "damaged"),
        (header(b'{"weight":{"dtype":"X9","shape":[1,1],"data_offsets":[0,4]}}') + b"0000", "damaged"),
        (header(b"[" * 5000 + b"]" * 5000), "damaged"),
        (header(b"{}") + b"more", "damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, says):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=says):
        load_weights(nn.Linear(1, 1), tmp_path / "w.safetensors")


def test_every_truncation_is_noticed(tmp_path):
    whole = save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "w.safetensors").write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path):
    """The length of a header is the file's first byte: some lengths begin like a pickle does."""
    path = tmp_path / "w.safetensors"
    for name in range(1, 300):
        save_file({"w" * name: torch.ones(1)}, path)
        if path.read_bytes()[0] == 128:
            break
    assert path.read_bytes()[0] == 128
    assert list(read_tensors(path).values()) == [torch.ones(1)]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="this is no file"):
        load_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(BadCheckpoint, match="cannot be read"):
            load_weights(nn.Linear(1, 1), path)
