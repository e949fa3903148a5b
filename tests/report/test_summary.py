"""Reading run folders: what is there is read, what is missing or damaged becomes a remark, nothing crashes."""

import math

import pytest

from leanconv.errors import BadInput
from leanconv.report.summary import RunSummary, comparability, numbers, read_run, read_runs, recipe_differences


def folder(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_a_whole_run_is_read_without_remarks(two_runs):
    run = read_run(two_runs[1])
    assert (run.name, run.remarks) == ("lean", [])
    assert run.model.endswith("conv=splconv(alpha=0.5)")
    assert run.history["dice"] == [0.2, 0.45, 0.5]


def test_a_killed_run_says_what_is_missing(tmp_path):
    run = read_run(folder(tmp_path / "r", recipe__toml='model = "leanconv:unet"\n'))
    said = " | ".join(run.remarks)
    for word in ("model.json", "history.csv", "metrics.json", "model.safetensors"):
        assert word in said
    assert run.model == "leanconv:unet"


def test_a_line_cut_short_is_left_out(tmp_path):
    text = "epoch,loss,dice\n1,0.9,0.1\n2,0.8,0.2\n3,0."
    run = read_run(folder(tmp_path / "r", recipe__toml="seed = 1\n", history__csv=text))
    assert run.history == {"epoch": [1.0, 2.0], "loss": [0.9, 0.8], "dice": [0.1, 0.2]}
    assert any("damaged line" in remark for remark in run.remarks)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recipe__toml", "model = "), ("model__json", "[1, 2"), ("model__json", "7"), ("metrics__json", "{"),
        ("metrics__json", "[]"), ("metrics__json", '{"threshold": "high", "test": 3}'), ("history__csv", "\x00\x00"),
        ("history__csv", "epoch,loss\n"), ("history__csv", "epoch,loss\na,b\n"),
    ],
)  # fmt: skip
def test_damaged_files_do_not_stop_the_report(tmp_path, name, text):
    run = read_run(folder(tmp_path / "r", **({"model__json": "{}"} | {name: text})))
    assert run.remarks
    assert math.isnan(run.value("dice"))


def test_only_finite_numbers_of_a_file_are_taken():
    stored = {"a": 1, "b": 10**400, "c": float("nan"), "d": True, "e": "1", "f": -(10**400), "g": 0.5}
    assert numbers(stored) == {"a": 1.0, "g": 0.5}


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="the folder does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"neither recipe\.toml nor model\.json"):
        read_run(tmp_path)
    with pytest.raises(BadInput, match="at least one"):
        read_runs([])


def test_names_are_short_and_differ(tmp_path):
    for part in ("a/unet", "b/unet", "b/lean"):
        folder(tmp_path / part, model__json="{}")
    assert [run.name for run in read_runs([tmp_path / "a/unet", tmp_path / "b/lean"])] == ["unet", "lean"]
    assert [run.name for run in read_runs([tmp_path / "a/unet", tmp_path / "b/unet"])] == ["a/unet", "b/unet"]
    with pytest.raises(BadInput, match="twice"):
        read_runs([tmp_path / "a/unet", tmp_path / "a/../a/unet"])


def test_other_data_is_remarked():
    runs = [RunSummary(name, recipe={"data": name, "lr": lr, "out": name}) for name, lr in (("x", 1), ("y", 2))]
    said = comparability(runs)
    assert "different data" in said[0]
    assert "lr" in said[1]
    assert "out" not in said[1]
    assert recipe_differences(runs)[0]["data"] == ["x", "y"]


def test_runs_that_differ_in_the_model_alone_get_no_remark():
    runs = [RunSummary(m, recipe={"data": "d", "model": m, "out": m, "seed": 0}) for m in "ab"]
    assert comparability(runs) == []
    assert recipe_differences(runs)[1] == {"data": "d", "seed": 0}
