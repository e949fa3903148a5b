"""The operators' tables: a stopped run goes on with the tables that it does not have, of the same settings only."""

import json

import pytest

from benchmarks import operators


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`main` with the measuring replaced: (layers measured, what was printed) of one run."""
    out = tmp_path / "operators.json"

    class Table:
        def to_dict(self):
            return {"models": []}

        def __str__(self):
            return "a table"

    def call(*words):
        seen = []
        monkeypatch.setattr("sys.argv", ["operators", "--quick", "--out", str(out), *words])
        monkeypatch.setattr(operators, "layer_rows", lambda place, *_: seen.append(place) or [{"layer": place}])
        monkeypatch.setattr(operators, "show_layer", lambda place, *_: place)
        kinds = ("training", "inference eager")
        tables = {kind: lambda kind=kind: seen.append(kind) or Table() for kind in kinds}
        monkeypatch.setattr(operators, "network_tables", lambda _: ("U-Net", tables))
        operators.main()
        return seen, capsys.readouterr().out

    call.out = out
    return call


def test_a_stopped_run_goes_on_where_it_was(run):
    whole = [*operators.QUICK_LAYERS, "training", "inference eager"]
    seen, printed = run("--minutes", "-1")
    assert seen == []
    assert f"{len(whole)} tables left" in printed
    assert run("--layers", "1x1")[0] == ["1x1", *whole[-2:]]
    assert run("--resume")[0] == [place for place in operators.QUICK_LAYERS if place != "1x1"]
    assert run("--resume")[0] == []
    held = json.loads(run.out.read_text())
    assert next(row["layer"] for row in held["layers"]) == "1x1"
    assert [row["table"] for row in held["networks"]] == whole[-2:]
    assert run()[0] == whole


def test_tables_of_two_settings_or_commits_do_not_mix(run):
    whole = [*operators.QUICK_LAYERS, "training", "inference eager"]
    run("--layers", "1x1")
    held = json.loads(run.out.read_text())
    run.out.write_text(json.dumps(held | {"clock": "sun"}))
    seen, printed = run("--resume", "--any-commit")
    assert seen == whole
    assert "another clock: starting a new table" in printed
    run.out.write_text(json.dumps(held | {"commit": "of before"}))
    assert run("--resume")[0] == whole
    run.out.write_text(json.dumps(held | {"commit": "of before"}))
    assert "1x1" not in run("--resume", "--any-commit")[0]
