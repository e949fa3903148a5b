"""Run folders: they come back whole, and whoever wrote a model.json, reading it runs nothing."""

import json

import pytest
import torch
from torch import nn

from leanconv.convert import apply_, plan
from leanconv.errors import BadCheckpoint, BadInput, LeanconvError, UnknownName, UntrustedCode
from leanconv.models import build
from leanconv.nn import HetConv2d
from leanconv.runs import RunFolder, load

REFERENCE = "leanconv:unet?base=4&levels=1&conv=splconv(alpha=0.5)"


@pytest.fixture
def run(tmp_path):
    """A run folder as a training leaves it, and the model it holds."""
    run = RunFolder(tmp_path / "run")
    model = build("unet", base=4, levels=1, conv="splconv(alpha=0.5)")
    model(torch.randn(4, 3, 8, 8))  # running statistics of its own
    run.write_model(REFERENCE)
    run.save_model(model)
    run.recipe.write_text("")
    return run, model.eval()


def test_a_run_comes_back(run):
    run, model = run
    x = torch.randn(1, 3, 8, 8)
    for loaded in (load(run.path), load(str(run.path)), RunFolder.open(run).load_model()):
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))


def test_the_names_in_a_run_folder_are_the_designs(tmp_path):
    run = RunFolder(tmp_path)
    paths = [
        run.recipe,
        run.model_json,
        run.weights,
        run.history,
        run.metrics,
        run.events,
        run.report,
        run.export,
        run.last,
    ]
    assert [p.name for p in paths] == [
        "recipe.toml",
        "model.json",
        "model.safetensors",
        "history.csv",
        "metrics.json",
        "events",
        "report.html",
        "export",
        "last",
    ]
    assert {p.parent for p in paths} == {tmp_path}


def test_a_folder_of_anything_else_is_no_run(tmp_path):
    with pytest.raises(BadInput, match="run folder does not exist"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(BadInput, match=r"neither model.json nor recipe.toml"):
        RunFolder.open(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(BadCheckpoint, match="has the run written a model yet"):
        RunFolder.open(tmp_path).load_model()


def test_swaps_are_repeated(tmp_path):
    base = "leanconv:unet?base=4&levels=1"
    model, x = load(base), torch.randn(1, 3, 8, 8)
    steps = plan(model, x, to="hetconv(part=2)")
    apply_(model, steps)
    run = RunFolder(tmp_path)
    run.write_model(base, swaps=steps)
    run.save_model(model)
    loaded = load(tmp_path)
    assert sum(isinstance(m, HetConv2d) for m in loaded.modules()) == len(steps.swapped) > 2
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))


def test_swaps_of_layers_that_are_not_there(tmp_path):
    run = RunFolder(tmp_path)
    run.write_model("leanconv:unet?base=4", swaps=[("encoder.level9.conv1", "splconv")])
    with pytest.raises(BadCheckpoint, match=r"model cannot be built: .*level9"):
        run.build_model()


@pytest.mark.parametrize("reference", ["runs/other", "/etc", "nothing"])
def test_a_model_file_names_a_model(tmp_path, reference):
    with pytest.raises(BadInput, match="names no model"):
        RunFolder(tmp_path).write_model(reference)
    assert not (tmp_path / "model.json").exists()
    with pytest.raises(UnknownName):
        RunFolder(tmp_path).write_model("foo:bar")


def test_swaps_to_an_unknown_operator_are_not_written(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'splconv'"):
        RunFolder(tmp_path).write_model("leanconv:unet", swaps=[("head", "splcon")])
    assert not (tmp_path / "model.json").exists()


def hostile(folder, **stored) -> RunFolder:
    (folder / "model.json").write_text(json.dumps({"format": 1, "leanconv": "0", **stored}))
    return RunFolder(folder)


def test_code_in_a_model_file_runs_only_when_trusted(tmp_path):
    code, fired = tmp_path / "evil.py", tmp_path / "fired"
    code.write_text(
        f"import pathlib\npathlib.Path({str(fired)!r}).touch()\n"
        "from torch import nn\ndef make(): return nn.Linear(2, 2)\n"
    )
    run = hostile(tmp_path, reference=f"{code}:make")
    for call in (lambda: load(tmp_path), run.load_model, run.build_model):
        with pytest.raises(UntrustedCode, match=r"asks to run .*evil.py:make; .*--trust-code"):
            call()
    assert not fired.exists()
    run.save_model(nn.Linear(2, 2))
    assert isinstance(load(tmp_path, trust_code=True), nn.Linear)
    assert fired.exists()


def test_a_code_reference_is_written_absolute(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make(n): return nn.Linear(n, 2)\n")
    monkeypatch.chdir(tmp_path)
    run = RunFolder("run")
    run.write_model("mine.py:make?n=3")
    run.save_model(load("mine.py:make?n=3"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load("../run", trust_code=True).in_features == 3


def test_a_model_file_never_downloads(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    seen = []
    monkeypatch.setattr(timm, "create_model", lambda name, **options: seen.append(options) or nn.Linear(1, 1))
    hostile(tmp_path, reference="timm:resnet18?pretrained=true&num_classes=2").build_model()
    assert seen == [{"pretrained": False, "num_classes": 2}]


def test_the_weights_replace_pretrained_ones(tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    run = hostile(tmp_path, reference="smp:Unet?encoder_name=resnet18&pretrained=true&encoder_weights=imagenet")
    assert sum(p.numel() for p in run.build_model().parameters()) > 1e7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\xff\xfe", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds list"),
        ("3", "holds int"),
        ("null", "holds NoneType"),
        ("{}", "needs format=1 and a reference"),
        ('{"format": 1}', "needs format=1 and a reference"),
        ('{"format": 1, "reference": 3}', "needs format=1 and a reference"),
        ('{"format": "1", "reference": "leanconv:unet"}', "needs format=1"),
        ('{"format": 7, "reference": "leanconv:unet"}', "has format 7, this version reads 1; update leanconv"),
        ('{"format": 1, "reference": ""}', "no model reference"),
        ('{"format": 1, "reference": "/etc"}', "names a path, not a model"),
        ('{"format": 1, "reference": "../other"}', "names a path, not a model"),
        ('{"format": 1, "reference": "leanconv:nonesuch"}', "unknown network"),
        ('{"format": 1, "reference": "timm:hf-hub:a/b"}', "cannot be built"),
        ('{"format": 1, "reference": "timm:resnet18?checkpoint_path=/etc/passwd"}', "is not taken"),
        ('{"format": 1, "reference": "leanconv:unet?conv=__import__(\'os\').abort()"}', "not readable"),
        ('{"format": 1, "reference": "leanconv:unet?base=999999999"}', "at most 65536"),
        ('{"format": 1, "reference": "http://example.org/x"}', "unknown kind of model"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": 3}', "swaps must be a list of pairs"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": [["a"]]}', "swaps must be a list of pairs"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": [["a", 3]]}', "swaps must be a list of pairs"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": [["head", "splconv"], ["head", "splconv"]]}', "2 times"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": [["head", "exit()"]]}', "cannot be built"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": [["", "splconv"]]}', "cannot be built"),
        ('{"format": 1, "reference": "leanconv:unet", "swaps": [["__class__", "splconv"]]}', "cannot be built"),
    ],
)
def test_a_model_file_by_somebody_else_is_refused_in_words(tmp_path, text, says):
    (tmp_path / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadCheckpoint, match=says) as caught:
        load(tmp_path)
    assert str(tmp_path / "model.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_model_file_is_not_read(tmp_path):
    with (tmp_path / "model.json").open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(BadCheckpoint, match=r"a model\.json has at most"):
        load(tmp_path)


def test_a_device_in_its_place_is_not_read(tmp_path):
    (tmp_path / "model.json").symlink_to("/dev/zero")
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(BadCheckpoint, match="does not exist"):
        load(tmp_path)


def test_weights_that_are_missing_or_anothers(run):
    run, _ = run
    run.write_model("leanconv:unet?base=4&levels=1")
    with pytest.raises(BadCheckpoint, match="another model's weights"):
        load(run.path)
    run.weights.unlink()
    with pytest.raises(LeanconvError, match="the weights cannot be read"):
        load(run.path)
