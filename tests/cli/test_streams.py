"""Where the output goes: an encoding without our letters, a reader who has left, no stream at all, a full disk."""

import io
import os
import subprocess
import sys

import pytest

from leanconv.cli.main import COMMANDS, main
from leanconv.runs import RunFolder, load

UNET = "leanconv:unet?base=2&levels=2"
SMALL = ["--input", "1,3,16,16"]


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("streams") / "Läufe 日本")
    folder.write_model(UNET)
    folder.recipe.write_text(f"data = '{tiny_data}'\nsize = 16\nsteps = 1\n")
    folder.save_model(load(UNET))
    folder.metrics.write_text('{"threshold": 0.5}')
    return folder.path


@pytest.fixture
def words(run, tiny_data, tmp_path):
    """A small call of each command."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(f"model = '{UNET}'\ndata = '{tiny_data}'\nsize = 24\nbatch = 5\nsteps = 1\ndevice = 'cpu'\n")
    report = ["--budget", "0", "--optimize", "0", "--cases", "1"]
    return {
        "ops": [],
        "profile": [UNET, *SMALL, "--budget", "0.01"],
        "bench": [UNET, *SMALL, "--budget", "0.01"],
        "plan": [UNET, *SMALL, "--to", "hetconv"],
        "convert": [UNET, *SMALL, "--to", "hetconv", "--out", tmp_path / "converted ö→日"],
        "optimize": [UNET, *SMALL, "--engines", "eager", "--budget", "1"],
        "search": [
            run,
            "--data",
            tiny_data,
            "--macs",
            "100%",
            "--images",
            "2",
            "--init",
            "project",
            "--to",
            "hetconv",
            "--out",
            tmp_path / "plan ö→日.json",
            "--state",
            tmp_path / "state ö→日.json",
        ],
        "lean": ["--help"],  # the way itself takes minutes
        "recipes": [],
        "train": [recipe, f"out={tmp_path / 'trained ö→日'}"],
        "eval": [run],
        "predict": [run, tiny_data / "test/images", "--out", tmp_path / "found"],
        "export": [run, tmp_path / "out ö→日.pt2", "--outputs-only"],
        "reproduce": ["splconv/table1"],
        "report": [run, "--out", tmp_path / "report ö→日.html", *report],
        "doctor": [],
    }


def called(monkeypatch, out, err, words):
    """The exit status of a call with these streams."""
    monkeypatch.setattr(sys, "argv", ["leanconv", *map(str, words)])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code or 0


@pytest.mark.parametrize(("command", "encoding"), [*((each, "cp1252") for each in COMMANDS), ("train", "ascii")])
def test_every_command_ends_well_in_every_encoding(monkeypatch, words, command, encoding):
    """Standard error too, though Python itself replaces there: a bar or a library may write past that."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    assert called(monkeypatch, out, err, [command, *words[command]]) == 0
    assert out.buffer.getvalue().decode(encoding).strip()


@pytest.mark.parametrize("command", ["ops", "train", "eval"])
def test_a_reader_who_has_left_costs_nothing(monkeypatch, words, tmp_path, command):
    """`| head` and `2>&1 | head`: the work is done, the files are written, the status is that of the work."""
    ends = [os.pipe() for _ in range(2)]
    for reader, _ in ends:
        os.close(reader)
    out, err = (os.fdopen(writer, "w") for _, writer in ends)
    more = {"eval": ["--out", tmp_path / "scores.json"], "train": [], "ops": []}[command]
    with out, err:
        assert called(monkeypatch, out, err, [command, *words[command], *more]) == 0
    if command == "eval":
        assert (tmp_path / "scores.json").stat().st_size
    if command == "train":
        assert (tmp_path / "trained ö→日" / "metrics.json").is_file()


def test_a_closed_stream_is_not_taken_for_another():
    """Python prints what is meant for a closed standard error to standard output, where a report is expected."""
    line = f"{sys.executable} -m leanconv ops nonsense --json 2>&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_below_the_output_is_one_line():
    line = [f"{sys.executable} -m leanconv ops > /dev/full"]
    done = subprocess.run(["bash", "-c", *line], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("words", [["ops", "conv", "a\u202e\nb"], ["a\x1b[31m\u202e\n"], ["ops", "--\u202e\n"]])
def test_a_word_that_nobody_knows_reaches_the_terminal_as_text(leanconv, words):
    """Names that a shell put into the command line (`leanconv ops *`)."""
    code, _, err = leanconv(*words)
    assert code == 2
    assert r"\u202e" in err
    assert all(line.isprintable() for line in err.split("\n"))


def test_without_words_the_help_is_shown(leanconv):
    code, out, err = leanconv()
    assert code == 2
    assert "reproduce" in out + err
    assert (out + err).count("\n") > len(COMMANDS)
