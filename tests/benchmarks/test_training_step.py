"""The benchmark of training steps: rows, modes, resuming, and its table and page."""

import sys
from importlib import import_module

import pytest
import torch

from benchmarks import training_step
from benchmarks.training_step import Network, Racer, main, modes, shown
from docs.generate.training import training_steps
from leanconv.files import read_json, write_json


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(training_step.NETWORKS, "tiny", Network("unet", {"base": 4, "levels": 1}, 2, 16, True))
    monkeypatch.setattr(training_step, "keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ran(monkeypatch, out, *more):
    words = ["--networks", "tiny", "--threads", "1", "--rounds", "2", "--words", "channels_last", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["training_step", *words, *more])
    main()
    return read_json(out)["rows"]


def test_rows_are_measured_kept_and_shown(tiny, monkeypatch, tmp_path, capsys):
    out = tmp_path / "steps.json"
    rows = ran(monkeypatch, out, "--operators", "conv", "depthwise_separable", "hetconv(part=3)")
    assert [row["operator"] for row in rows] == ["conv", "depthwise_separable"]  # part=3 divides no channels
    assert "part=3" in capsys.readouterr().err
    dense, row = rows
    assert dense["dense_best"] if "dense_best" in dense else dense["best"] in dense["modes"]
    assert row["of_dense"]["low"] <= row["of_dense"]["middle"] <= row["of_dense"]["high"]
    assert row["rounds"] == 2
    assert min(row["peak_bytes"], row["dense_peak_bytes"]) > 2 * 4 * 16 * 16 * 4  # a map
    rows[1]["ms"] = 1e9
    write_json(out, {"rows": rows})
    again = ran(monkeypatch, out, "--operators", "depthwise_separable", "splconv", "--resume")
    assert [row["operator"] for row in again] == ["conv", "depthwise_separable", "splconv"]
    assert again[1]["ms"] == 1e9  # not measured again
    assert "splconv" in shown(again)
    page = training_steps("steps", {"rows": again})
    assert "| `splconv` |" in page
    assert "`conv`" not in page.partition("\n\n|")[2].partition("\n\n")[0]


def test_a_mode_with_other_gradients_does_not_count(tiny, monkeypatch):
    def wrong(self, *args):
        found = real(self, *args)
        return found * 1.5 if "channels_last" in self.mode else found

    real = training_step.Forward.__call__
    monkeypatch.setattr(training_step.Forward, "__call__", wrong)
    racer = Racer("tiny", "conv", 1, ["channels_last"])
    assert str(racer.modes["channels_last"]).startswith("differs")
    assert list(racer.steps) == ["eager"]


def test_the_words_make_every_combination():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    names = [mode.name for mode in modes(model, ["channels_last", "bfloat16"])]
    assert names == ["eager", "channels_last", "bfloat16", "channels_last bfloat16"]


@pytest.mark.parametrize("module", ["training_step", "training_kernels"])
def test_two_machines_of_one_name_have_rows_of_their_own(module):
    key_of = import_module(f"benchmarks.{module}").key_of

    def row(**machine):
        here = {"name": "AMD EPYC", "isa": "AVX512"} | machine
        return {"network": "n", "operator": "conv", "dtype": "float32", "threads": 1, "device": here, "machine": here}

    assert key_of(row()) == key_of(row(torch="2.15"))
    assert len({key_of(row()), key_of(row(isa="AVX2")), key_of(row(max_isa="avx2")), key_of(row(name="another"))}) == 4
