"""The benchmark of `leanconv lean`: a row a goal, replaced by the next one of its kind, without the machine's paths."""

import json
import sys

import pytest

from benchmarks import command_of, lean_networks
from docs.generate.training import lean_networks as section
from leanconv.planner.lean.report import Report
from leanconv.train.recipe import Recipe

RACE = {"ratio": {"low": 1.9, "middle": 2.0, "high": 2.1}, "where": "CPU", "dense": {"engine": "fused"}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "dense"
    folder.mkdir()
    Recipe(model="leanconv:unet?base=8", data=f"{tmp_path}/steel?label=kind", out=str(folder), epochs=7).write(
        folder / "recipe.toml"
    )
    (folder / "model.json").write_text(json.dumps({"reference": "leanconv:unet?base=8"}))
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What the benchmark asks `make_lean` for; it answers with figures that are given."""
    calls = []

    def make_lean(asked):
        calls.append(asked)
        sizes = {"params": 10, "macs": 20}
        stages = {
            "dense": {"score": 0.9, "seconds": 1.0, **sizes},
            "plan": {"swapped": 3, "kept": 1, "operators": {asked.to or "sic": 3}, "seconds": 60.0},
            "fit": {"score": 0.7, "seconds": 60.0, **sizes},
            "speed": RACE | {"lean": {"engine": "fused"}, "seconds": 2.0},
        }
        if asked.epochs:
            stages["recover"] = {"score": 0.88 + len(calls) / 1000, "seconds": 120.0, **sizes}
        return Report(asked.out, asked.to_dict(), {"measure": "Dice", "judged": "9 test images"}, stages)

    monkeypatch.setattr(lean_networks, "make_lean", make_lean)
    return calls


def rows_after(monkeypatch, tmp_path, run, *words):
    out = tmp_path / "lean.json"
    given = ["lean_networks", str(run), *words, "--runs", str(tmp_path / "runs"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    lean_networks.main()
    return json.loads(out.read_text())


def test_a_row_for_each_goal_and_the_page_shows_it(monkeypatch, tmp_path, run, asked):
    report = rows_after(monkeypatch, tmp_path, run, "--to", "splconv", "sic", "--faster", "2x", "--epochs", "3")
    assert [row["goal"] for row in report["rows"]] == ["splconv", "sic", "2x"]
    assert [each.out for each in asked] == [
        str(tmp_path / "runs" / f"dense-{n}-3-epochs") for n in ("splconv", "sic", "2-0")
    ]
    assert str(tmp_path) not in json.dumps(report)
    assert {row["data"] for row in report["rows"]} == {"steel"}
    page = section("lean_networks", report)
    assert (
        "| `leanconv:unet?base=8` on steel, 7 epochs | `splconv` | 0.9000 | 0.7000 | 0.8810 (3) | - | -0.0190 |" in page
    )
    assert "`--faster 2x`: sic in 3" in page
    assert "| 4 |" in page  # minutes of plan, fit and recovery


def test_a_row_is_replaced_by_its_next_measurement(monkeypatch, tmp_path, run, asked):
    rows_after(monkeypatch, tmp_path, run, "--to", "splconv", "sic")
    report = rows_after(monkeypatch, tmp_path, run, "--to", "splconv")
    assert [(row["goal"], row["recovered"]) for row in report["rows"]] == [("splconv", 0.883), ("sic", 0.882)]
    report = rows_after(monkeypatch, tmp_path, run, "--to", "splconv", "--epochs", "0")
    assert [row["recovered"] for row in report["rows"]] == [0.883, 0.882, None]
    assert "| 0.7000 | - | - | -0.2000 |" in section("lean_networks", report)


def test_rows_of_two_machines_stand_beside_each_other(monkeypatch, tmp_path, run, asked):
    """Speeds of two machines say different things; before, a measurement on another one threw all rows away."""
    rows_after(monkeypatch, tmp_path, run, "--to", "splconv")
    monkeypatch.setattr(lean_networks, "describe", lambda: {"name": "Another", "isa": "AVX2", "threads": 1})
    report = rows_after(monkeypatch, tmp_path, run, "--to", "splconv")
    assert len(report["rows"]) == 2
    assert "Another (AVX2)" in section("lean_networks", report)


def test_a_command_names_no_file_of_the_machine():
    assert command_of("choices", ["--quick", "--out", "/home/me/x.json", "--layers", "U-Net e1"]) == (
        "python -m benchmarks.choices --quick --layers 'U-Net e1'"
    )
    assert command_of("choices", ["--out=/home/me/x.json"]) == "python -m benchmarks.choices"
