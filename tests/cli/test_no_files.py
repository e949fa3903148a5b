"""What lies where a file should be: a pipe keeps nobody waiting, and neither it nor a name of any length is a fault."""

import os
import signal
import socket

import pytest

from leanconv.runs import RunFolder, load

UNET = "leanconv:unet?base=2&levels=2"
LONG = "x" * 300


def pipe(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as opened:
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's address is short
        try:
            opened.bind(path.name)
        finally:
            os.chdir(before)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def nowhere(path):
    path.symlink_to(path.parent / "gone")


def itself(path):
    path.symlink_to(path)


NO_FILES = [pipe, listening, device, folder, nowhere, itself]


@pytest.fixture(autouse=True)
def _nobody_waits():
    """A call that waits for a pipe fails instead."""

    def late(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tiny_data, tmp_path):
    made = RunFolder(tmp_path / "run")
    made.write_model(UNET, task="segment", classes=("background", "defect"))
    made.recipe.write_text(f"model = '{UNET}'\ndata = '{tiny_data}'\nsize = 16\nsteps = 1\nbatch = 5\ndevice = 'cpu'\n")
    made.save_model(load(UNET))
    made.metrics.write_text('{"threshold": 0.5}')
    return made


def instead_of(path, put):
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    put(path)


def one_line_of(called):
    code, out, err = called
    assert code in (1, 2), err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "a fault of leanconv" not in err
    assert "it waits" not in err
    return err


@pytest.mark.parametrize("put", NO_FILES, ids=lambda put: put.__name__)
def test_in_place_of_a_file_that_was_named(leanconv, run, tiny_data, tmp_path, put):
    """A recipe, a run, a model, a plan, an image."""
    path = tmp_path / "there"
    put(path)
    small = ["--input", "1,3,16,16"]
    one_line_of(leanconv("train", path))
    one_line_of(leanconv("eval", path))
    one_line_of(leanconv("predict", path, tiny_data / "test/images"))
    one_line_of(leanconv("profile", path, *small))
    one_line_of(leanconv("profile", f"{path}.py:net", *small))
    one_line_of(leanconv("report", path, "--out", tmp_path / "r.html"))
    one_line_of(leanconv("convert", UNET, *small, "--plan", path, "--out", tmp_path / "converted"))


@pytest.mark.parametrize("name", ["model_json", "weights"])
@pytest.mark.parametrize("put", NO_FILES, ids=lambda put: put.__name__)
def test_in_place_of_a_file_that_every_run_has(leanconv, run, tiny_data, name, put):
    path = getattr(run, name)
    instead_of(path, put)
    assert path.name in one_line_of(leanconv("eval", run.path))
    assert path.name in one_line_of(leanconv("predict", run.path, tiny_data / "test/images"))
    assert path.name in one_line_of(leanconv("profile", run.path, "--input", "1,3,16,16"))


@pytest.mark.parametrize("put", [pipe, folder], ids=lambda put: put.__name__)
def test_a_training_goes_on_from_nothing_that_is_no_file(leanconv, run, put):
    """It would begin again, and lose what a reader of the pipe thought was saved."""
    instead_of(run.last / "state.safetensors", put)
    run.metrics.unlink()
    run.weights.unlink()
    assert "state.safetensors" in one_line_of(leanconv("train", run.path, "--resume", "--quiet"))


def test_what_a_report_reads(leanconv, run, tmp_path):
    for name in ("recipe", "history", "metrics"):
        instead_of(getattr(run, name), pipe)
    words = ["--out", tmp_path / "r.html", "--budget", "0", "--optimize", "0", "--cases", "0"]
    code, out, err = leanconv("report", run.path, *words)
    assert code == 0, err
    assert " ".join(out.split()).count("it is no file but a pipe") == 3  # lines break where the path ends


@pytest.mark.parametrize("name", [LONG, f"{LONG}/a"])
def test_a_name_that_no_file_can_have(leanconv, run, tmp_path, name):
    recipe = run.recipe
    one_line_of(leanconv("train", name))
    one_line_of(leanconv("train", recipe, f"data={name}", f"out={tmp_path / 'new'}", "--quiet"))
    one_line_of(leanconv("train", recipe, f"out={tmp_path / name}", "--quiet"))
    one_line_of(leanconv("train", recipe, f"model={name}", f"out={tmp_path / 'new'}", "--quiet"))
    one_line_of(leanconv("eval", name))
    one_line_of(leanconv("eval", run.path, "--data", name))
    one_line_of(leanconv("profile", name))
    one_line_of(leanconv("report", name))
    one_line_of(leanconv("convert", UNET, "--input", "1,3,16,16", "--to", "hetconv", "--out", tmp_path / LONG))
    one_line_of(leanconv("convert", name, "--input", "1,3,16,16", "--to", "hetconv", "--out", tmp_path / "new"))
    assert not (tmp_path / "new").exists()
