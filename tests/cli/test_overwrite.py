"""No command replaces a file that leanconv did not write, unless it is told to; its own it replaces."""

import pytest

from leanconv.models import build
from leanconv.runs import RunFolder

UNET = ["leanconv:unet", "base=2", "levels=1"]
COMMANDS = {
    "profile .json": (["profile", *UNET, "--input", "1,3,8,8", "--budget", "0", "--out"], "r.json"),
    "profile .txt": (["profile", *UNET, "--input", "1,3,8,8", "--budget", "0", "--out"], "r.txt"),
    "bench": (["bench", *UNET, "--input", "1,3,8,8", "--budget", "0", "--out"], "r.txt"),
    "optimize": (["optimize", *UNET, "--input", "1,3,8,8", "--engines", "folded", "--budget", "2", "--out"], "r.json"),
    "plan": (["plan", *UNET, "--input", "1,3,8,8", "--to", "splconv", "--out"], "plan.json"),
    "plan without a suffix": (["plan", *UNET, "--input", "1,3,8,8", "--to", "splconv", "--out"], "plan"),
    "eval": (["eval", "RUN", "--threshold", "0.5", "--out"], "scores.txt"),
    "report": (["report", "RUN", "--budget", "0", "--cases", "0", "--out"], "r.html"),
    "reproduce": (["reproduce", "splconv/table1", "--counts", "--out"], "r.json"),
    "export .pt2": (["export", *UNET, "--input", "1,3,8,8"], "m.pt2"),
    "export .onnx": (["export", *UNET, "--input", "1,3,8,8"], "m.onnx"),
    "export .xml": (["export", *UNET, "--input", "1,3,8,8"], "m.xml"),
}


@pytest.fixture
def run(tiny_data, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_model("leanconv:unet?base=2&levels=1")
    folder.recipe.write_text(f"data = '{tiny_data}'\nsteps = 1\nsize = 16\n")
    folder.save_model(build("unet", base=2, levels=1))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_the_users_stays(leanconv, run, tmp_path, command):
    if ".onnx" in command or ".xml" in command:
        pytest.importorskip("openvino" if ".xml" in command else "onnxscript", reason="needs the export extra")
    words, name = COMMANDS[command]
    words, out = [str(run.path) if word == "RUN" else word for word in words], tmp_path / name
    out.write_text("my thesis")
    before = {path.name for path in tmp_path.iterdir()}
    code, _, err = leanconv(*words, out)
    assert code == 1, err
    assert f"{name} is there already, and leanconv did not write it" in err
    assert err.count("error:") == 1
    assert out.read_text() == "my thesis"
    assert {path.name for path in tmp_path.iterdir()} == before
    code, _, err = leanconv(*words, out, "--overwrite")
    assert code == 0, err
    assert out.read_bytes() != b"my thesis"
    code, _, err = leanconv(*words, out)
    assert code == 0, err


def test_the_second_file_of_an_export(leanconv, tmp_path):
    pytest.importorskip("openvino", reason="needs the export extra")
    (tmp_path / "m.bin").write_text("my thesis")
    code, _, err = leanconv("export", *UNET, "--input", "1,3,8,8", tmp_path / "m.xml")
    assert (code, "m.bin is there already" in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.bin"]


@pytest.mark.parametrize("name", ["recipe.toml", "history.csv", "metrics.json", "events/x", "last/state.safetensors"])
def test_no_model_is_put_into_anothers_run(leanconv, tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("mine")
    words = ("convert", *UNET, "--input", "1,3,8,8", "--to", "splconv", "--out", tmp_path / "run")
    code, _, err = leanconv(*words)
    assert (code, f"holds {name.split('/')[0]}" in err) == (1, True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name.split("/")[0]]
