"""`leanconv reproduce`."""

import importlib
import json

import pytest

from leanconv.papers import splconv
from leanconv.papers.network import Network


def test_the_file_and_the_table_show_the_same(leanconv, tmp_path):
    code, text, _ = leanconv("reproduce", "splconv/table1", "--counts", "--out", str(tmp_path / "counts.json"))
    assert code == 0
    assert "15 of 18 figures agree" in text
    rows = json.loads((tmp_path / "counts.json").read_text())["rows"]
    assert len(rows) == 18
    for row in rows:
        assert f"{row['ours']:,}" in text


def test_a_row_that_should_agree_and_does_not_is_a_failure(leanconv, monkeypatch):
    monkeypatch.setitem(splconv.NETWORKS, "unet32", Network("unet", {"base": 33}))
    code, text, _ = leanconv("reproduce", "splconv/table1", "--json")
    assert code == 1
    assert json.loads(text)["unexpected"] == ["UNet Params", "UNet Flops", "UNet MAdd"]


def test_times_at_a_given_input_written_to_a_file(leanconv, tmp_path):
    out = tmp_path / "times.json"
    code, text, _ = leanconv(
        "reproduce", "splconv/table1", "--time", "--input", "2,3,16,16", "--budget", "0", "--out", str(out)
    )
    assert code == 0
    assert "batch 2, 3x16x16" in text
    assert "Params" not in text
    (timing,) = json.loads(out.read_text())["timing"]
    assert [row["paper_fps"] for row in timing["rows"]] == [77, 74, 36, 49, 39, 39]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nonesuch"], 2, "unknown table 'nonesuch'"),
        (["splconv/table1", "--input", "1,3,500,500"], 1, "multiples of 16"),
        (["splconv/table1", "--input", "1,1,512,512"], 1, "N,3,H,W"),
        (["splconv/table1", "--input", "big"], 1, "1,3,512,512"),
        (["splconv/table1", "--time", "--device", "abacus"], 1, "abacus"),
        ([], 2, "PAPER/TABLE"),
    ],
)
def test_misuse_gets_one_line(leanconv, words, code, says):
    got, _, err = leanconv("reproduce", *words)
    assert got == code
    assert says in err
    assert "Traceback" not in err


def test_several_tables_end_in_a_summary(leanconv, monkeypatch):
    from leanconv.papers import reproduce, spconv

    room = importlib.import_module(reproduce.__module__)
    monkeypatch.setattr(room, "_PAPERS", {"splconv": splconv, "spconv": spconv})
    code, text, err = leanconv("reproduce", "all", "--counts")
    assert code == 0
    assert [line.split() for line in text.splitlines() if line.startswith("all ")] == [
        ["all", "2", "10", "26", "23", "3"]
    ]
    assert "contradicts the paper's own eq. 7" in text.split("Summary")[1]
    assert "Left out: hetconv/table1: its networks are not built here" in " ".join(text.split())
    assert err == ""  # no bar where there is no terminal
