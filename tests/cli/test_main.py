"""The frame of the command line: exit codes, one-line errors, tracebacks on demand, every command with its help."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
from typer.testing import CliRunner

from leanconv.cli.main import COMMANDS, build, main


def test_an_unknown_command_is_usage(leanconv):
    code, _, err = leanconv("trian")
    assert code == 2
    assert "trian" in err


def test_a_mistake_is_one_line_and_debug_shows_where(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leanconv", "ops", "splcnov"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown operator 'splcnov' (did you mean 'splconv'?)")
    assert error.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["leanconv", "ops", "splcnov", "--debug"])
    with pytest.raises(Exception, match="splcnov"):
        main()


def test_a_hostile_name_stays_text(monkeypatch, capsys, tmp_path):
    hidden = "evil.py\x1b[2K\rall is well\n\x9b2J.py:make"
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "reference": hidden, "swaps": []}))
    monkeypatch.setattr(sys, "argv", ["leanconv", "optimize", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert r"evil.py\x1b[2K\rall is well\n\x9b2J.py:make" in error
    assert error.rstrip("\n").isprintable()


def test_a_fault_of_ours_is_one_line_too(monkeypatch, capsys):
    def broken(*_):
        raise KeyError("inner")

    monkeypatch.setattr("leanconv.cli.ops.names", broken)
    monkeypatch.setattr(sys, "argv", ["leanconv", "ops"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "a fault of leanconv's" in capsys.readouterr().err


MODELS = """
import warnings
from torch import nn

class Lost(nn.Sequential):
    def forward(self, x):
        return {"a": super().forward(x)}["b"]

class Loud(nn.Sequential):
    def forward(self, x):
        warnings.warn("two\\nlines")
        return super().forward(x)

def lost():
    return Lost(nn.Conv2d(3, 8, 3))

def loud():
    return Loud(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
"""


@pytest.mark.parametrize("command", ["profile", "bench", "optimize", "plan", "export", "profile --array 8x8", "train"])
def test_a_models_own_error_is_called_its_own_with_its_place(leanconv, tmp_path, command):
    (tmp_path / "net.py").write_text(MODELS)
    command, *more = command.split()
    words = [f"{tmp_path / 'net.py'}:lost", "--input", "1,3,8,8", *more]
    words += {"plan": ["--to", "hetconv"], "export": [tmp_path / "net.onnx"]}.get(command, [])
    if command == "train":
        (tmp_path / "r.toml").write_text(
            f"model = '{words[0]}'\ndata = 'synthetic:wafer?size=48&count=30'\nsteps = 1\n"
        )
        words = [tmp_path / "r.toml", "--trust-code", "--quiet", f"out={tmp_path / 'run'}", "device=cpu"]
    code, _, err = leanconv(command, *words)
    assert code == 1
    assert "KeyError: 'b' (net.py, line 7, in forward)" in err
    assert "a fault of leanconv's" not in err
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_warning_is_one_line(leanconv, tmp_path):
    (tmp_path / "net.py").write_text(MODELS)
    code, _, err = leanconv("plan", f"{tmp_path / 'net.py'}:loud", "--input", "1,3,8,8", "--to", "hetconv")
    assert code == 0
    assert set(err.splitlines()) == {r"warning: two\nlines"}


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m leanconv ops | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_a_function_help_and_json(name):
    function = import_module(f"leanconv.cli.{name}").command
    assert function.__doc__
    done = CliRunner().invoke(build(name), [name, "--help"])
    assert done.exit_code == 0, done.output
    assert "--json" in done.output
    assert "--debug" in done.output


def test_ops_prints_the_same_numbers_to_people_and_machines():
    rows = json.loads(CliRunner().invoke(build("ops"), ["ops", "--json"]).output)["operators"]
    assert {row["name"]: row["params"] for row in rows}["hetconv"] == 24_576
    shown = CliRunner().invoke(build("ops"), ["ops"]).output
    assert all(row["name"] in shown for row in rows)
    one = CliRunner().invoke(build("ops"), ["ops", "splconv"]).output
    assert "gated_sum" in one
    assert "alpha=0.5" in one
