"""Model references: what is read, what is built, what is refused, and that nothing runs or downloads unasked."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanconv.errors import BadInput, LeanconvError, UnknownName
from leanconv.models import UNet
from leanconv.nn import SPLConv2d
from leanconv.runs import join, load
from leanconv.runs.kinds import read, value, with_outputs


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_an_operator_string_survives_in_a_reference():
    model = load("leanconv:unet?base=4&conv=splconv(alpha=0.5, rate=3)&part=encoder")
    assert isinstance(model, UNet)
    assert model.training
    layers = [m for m in model.modules() if isinstance(m, SPLConv2d)]
    assert len(layers) == 9
    assert {(m.alpha, m.rate) for m in layers} == {(0.5, 3)}


def test_words_are_options_and_win():
    words = ["base=8", "conv=splconv(alpha=0.75, rate=2)"]
    one, other = load("leanconv:unet?base=4&levels=2", words=words), load("leanconv:unet?levels=2&" + "&".join(words))
    assert one.extra_repr() == other.extra_repr()
    assert one.base == 8


@pytest.mark.parametrize("ref", ["leanconv:unet", "leanconv:unet?levels=2"])
def test_join_says_the_same_in_one_reference(ref):
    words = ["base=4", "conv=hetconv(part=2)"]
    assert load(join(ref, words)).extra_repr() == load(ref, words=words).extra_repr()
    assert join(ref, []) == ref
    with pytest.raises(BadInput, match="'base' is no option"):
        join(ref, ["base"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32", 32), ("-1", -1), ("0.5", 0.5), ("1e3", 1000.0), ("true", True), ("False", False), ("None", None),
        ("none", None), ("(1, 2)", (1, 2)), ("1,2", (1, 2)), ("[3]", [3]), ("'a&b'", "a&b"), ("resnet18", "resnet18"),
        ("splconv(alpha=0.5)", "splconv(alpha=0.5)"), ("__import__('os')", "__import__('os')"), ("1if", "1if"),
        ("(" * 3000, "(" * 3000), (" 4 ", 4), ("a=b", "a=b"), ("C:/x", "C:/x"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_a_value_is_a_literal_or_the_text(text, expected):
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_an_ampersand_inside_a_value_splits_nothing():
    assert read("leanconv:unet?a='x&y'&b=R&D&c=1").options == {"a": "x&y", "b": "R&D", "c": 1}


@given(st.text(max_size=60))
def test_no_text_makes_it_fall_over(text):
    with contextlib.suppress(LeanconvError):
        read(text)


@pytest.mark.parametrize(
    ("ref", "error", "says"),
    [
        ("", BadInput, "no model reference; write leanconv:unet"),
        ("\0", BadInput, "no model reference"),
        ("leanconv:", BadInput, "no model and no run folder"),
        ("leancnov:unet", UnknownName, "did you mean 'leanconv'"),
        ("ftp:resnet18", UnknownName, "write leanconv:unet.*timm:resnet18, smp:Unet.*factory, or a run folder"),
        ("https://example.org/model.pt", UnknownName, "unknown kind of model 'https'"),
        ("leanconv:unett", UnknownName, "did you mean 'unet'"),
        ("leanconv:unet?bsae=3", UnknownName, "did you mean 'base'"),
        ("leanconv:unet?base=big", BadInput, "base='big'"),
        ("leanconv:unet?base", BadInput, "'base' is no option; write key=value"),
        ("leanconv:unet?base=", BadInput, "'base=' is no option"),
        ("leanconv:unet?=3", BadInput, "'=3' is no option"),
        ("leanconv:unet?a.b=3", BadInput, "'a.b=3' is no option"),
        ("leanconv:unet?base=4&base=8", BadInput, "base is given twice"),
        ("leanconv:unet?pretrained=true", UnknownName, "no option 'pretrained'"),
        ("leanconv:unet?conv=slpcon", UnknownName, "unknown operator"),
        ("no/such/folder", BadInput, "no model and no run folder"),
        ("unet", BadInput, "write leanconv:unet"),
        ("no/such.py:make", BadInput, "there is no file no/such.py"),
        ("x" * 5000, BadInput, "no model and no run folder"),
        ("x" * 5000 + ".py:f", BadInput, "there is no file"),
    ],
)
def test_a_wrong_reference_says_what_to_write(ref, error, says):
    with pytest.raises(error, match=says):
        load(ref)


def test_a_folder_that_is_no_run_and_a_file_of_a_run(tmp_path):
    with pytest.raises(BadInput, match="is no run folder"):
        load(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(BadInput, match=r"give the run folder, '.*'\)"):
        load(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="takes no options, got base"):
        load(tmp_path, words=["base=3"])


class TestCode:
    """A Python file that the user names himself."""

    def write(self, folder, text):
        path = folder / "mine.py"
        path.write_text(text)
        return path

    def test_a_factory_a_class_and_a_module(self, tmp_path):
        path = self.write(
            tmp_path,
            "from torch import nn\nfrom beside import width\n"
            "def make(n=width, kind='a'):\n    assert kind == 'b(c=1)'\n    return nn.Linear(n, 2)\n"
            "class Net(nn.Conv2d):\n    def __init__(self, o): super().__init__(1, o, 3)\n"
            "ready = nn.Linear(5, 5)\n",
        )
        (tmp_path / "beside.py").write_text("width = 7\n")
        assert load(f"{path}:make?kind=b(c=1)").in_features == 7
        assert load(f"{path}:make", words=["n=3", "kind=b(c=1)"]).in_features == 3
        assert load(f"{path}:Net?o=4").out_channels == 4
        assert load(f"{path}:ready").in_features == 5

    def test_two_files_each_have_their_own_neighbours(self, tmp_path):
        for folder, width in (("one", 3), ("two", 4)):
            (tmp_path / folder / "blocks").mkdir(parents=True)
            (tmp_path / folder / "sizes.py").write_text(f"width = {width}\n")
            (tmp_path / folder / "blocks" / "__init__.py").write_text("")
            (tmp_path / folder / "blocks" / "out.py").write_text(f"width = {10 * width}\n")
            self.write(
                tmp_path / folder,
                "from torch import nn\nfrom sizes import width\nfrom blocks import out\n"
                "def make(): return nn.Linear(width, out.width)\n",
            )
        for folder, width in (("one", 3), ("two", 4), ("one", 3)):
            made = load(f"{tmp_path / folder / 'mine.py'}:make")
            assert (made.in_features, made.out_features) == (width, 10 * width)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("def mke(): pass", "defines no 'make' .did you mean 'mke'"),
            ("make = 3", "your code raised TypeError"),
            ("def make(): return 3", "gave int, not an nn.Module"),
            ("def make(): raise KeyError('x')", "your code raised KeyError: 'x'"),
            ("def make(a): pass", "your code raised TypeError.*missing"),
            ("import sys; sys.exit(3)", "your code raised SystemExit: 3"),
            ("def make(:", "your code raised SyntaxError"),
            ("import no_such_library", "your code raised ModuleNotFoundError"),
        ],
    )
    def test_its_faults_are_named(self, tmp_path, text, says):
        with pytest.raises(BadInput, match=says):
            load(f"{self.write(tmp_path, text)}:make")


@pytest.fixture
def offline(monkeypatch):
    """Any connection is a failure."""
    import socket

    def refuse(*arguments):
        raise AssertionError(f"a connection to {arguments} was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class TestTimm:
    @pytest.fixture(autouse=True)
    def _library(self, offline):
        pytest.importorskip("timm", reason="timm is not installed")

    def test_it_is_built_without_a_download(self):
        model = load("timm:resnet18?num_classes=3")
        assert model.fc.out_features == 3
        assert size(model) == 11_178_051  # 11,689,512 with 1000 classes

    @pytest.mark.parametrize(
        ("ref", "error", "says"),
        [
            ("timm:resnet81", UnknownName, "timm has no model 'resnet81' .did you mean 'resnet"),
            ("timm:hf-hub:timm/resnet18", UnknownName, "timm has no model"),
            ("timm:local-dir:/tmp", UnknownName, "timm has no model"),
            ("timm:resnet18?pretrained=yes", BadInput, "pretrained='yes': true or false"),
            ("timm:resnet18?nonsense=1", BadInput, "cannot be built: TypeError.*nonsense"),
            ("timm:resnet18?checkpoint_path=/etc/passwd", BadInput, "checkpoint_path= is not taken"),
            ("timm:resnet18?pretrained_cfg={'file':'/etc/passwd'}", BadInput, "pretrained_cfg= is not taken"),
        ],
    )
    def test_a_wrong_name_or_option(self, ref, error, says):
        with pytest.raises(error, match=says):
            load(ref)


class TestSmp:
    @pytest.fixture(autouse=True)
    def _library(self, offline):
        pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")

    def test_it_is_built_without_a_download(self):
        model = load("smp:unet?encoder_name=resnet18&classes=2").eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)

    @pytest.mark.parametrize(
        ("ref", "error", "says"),
        [
            ("smp:Unett", UnknownName, "did you mean 'Unet'"),
            ("smp:Unet?encoder_name=resnet81", BadInput, "cannot be built"),
            ("smp:Unet?encoder_name=tu-hf-hub:timm/resnet18", BadInput, "nothing is fetched by address"),
            ("smp:Unet?encoder_weights=imagenet", BadInput, "pass pretrained=true as well"),
            ("smp:Unet?encoder_depth=99", BadInput, "cannot be built"),
        ],
    )
    def test_a_wrong_name_or_option(self, ref, error, says):
        with pytest.raises(error, match=says):
            load(ref)


def test_pretrained_is_what_downloads(monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    seen = []
    monkeypatch.setattr(timm, "create_model", lambda name, **options: seen.append(options) or nn.Identity())
    load("timm:resnet18")
    load("timm:resnet18?pretrained=true")
    assert [options["pretrained"] for options in seen] == [False, True]


@pytest.mark.parametrize(
    ("ref", "outputs", "expected"),
    [
        ("leanconv:unet", 4, "leanconv:unet?out_channels=4"),
        (
            "leanconv:unet?base=2&conv=splconv(alpha=0.5)",
            3,
            "leanconv:unet?base=2&conv=splconv(alpha=0.5)&out_channels=3",
        ),
        ("leanconv:unet", 1, "leanconv:unet"),
        ("leanconv:unet?out_channels=2", 4, "leanconv:unet?out_channels=2"),
        ("leanconv:resnet18", 7, "leanconv:resnet18?num_classes=7"),
        ("leanconv:resnet18?num_classes=5", 7, "leanconv:resnet18?num_classes=5"),
        ("timm:resnet18", 7, "timm:resnet18?num_classes=7"),
        ("smp:Unet?encoder_name=resnet18", 4, "smp:Unet?encoder_name=resnet18&classes=4"),
        ("smp:Unet", 1, "smp:Unet"),
        ("net.py:made?width=3", 4, "net.py:made?width=3"),
        ("runs/mine", 4, "runs/mine"),
    ],
)
def test_outputs_are_said_where_nobody_has(ref, outputs, expected):
    assert with_outputs(ref, outputs) == expected


def test_outputs_of_an_unknown_network():
    with pytest.raises(UnknownName, match="did you mean 'unet'"):
        with_outputs("leanconv:unett", 4)
