"""The whole way from run folders to the page: its numbers against own counts; what is missing has its remark."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput, UnknownName
from leanconv.report import build_report, compare_runs, speed
from leanconv.report.page import render
from leanconv.runs import RunFolder
from leanconv.train.data.augment import to_float


@pytest.fixture(scope="module")
def compared(two_runs):
    return compare_runs(two_runs, cases=4, budget_s=0.1, threads=1)


def test_counts_are_those_of_an_independent_counter(compared, two_runs):
    for folder, run in zip(two_runs, compared.runs, strict=True):
        model = folder.load_model()
        with FlopCounterMode(display=False) as counter:
            model(torch.rand(1, 3, 32, 32))
        assert run.costs["macs"] * 2 == counter.get_total_flops()
        assert run.costs["params"] == sum(p.numel() for p in model.parameters())
    assert compared.runs[1].costs["macs"] < compared.runs[0].costs["macs"]


def test_dice_per_image_by_hand(compared, two_runs):
    root = compared.data
    model = two_runs[0].load_model()
    dices = []
    for name, found in compared.runs[0].images.items():
        image = np.asarray(Image.open(f"{root}/test/images/{name}.png")).transpose(2, 0, 1)
        truth = np.asarray(Image.open(f"{root}/test/masks/{name}.png")) > 127
        with torch.no_grad():  # 40x56 needs no padding at two levels
            guess = (model(to_float(torch.tensor(image)[None]))[0, 0].sigmoid() >= 0.45).numpy()
        total = guess.sum() + truth.sum()
        dices.append(2 * (guess & truth).sum() / total if total else 1.0)
        assert found == pytest.approx(dices[-1], abs=5e-3)
    assert len(dices) == 6
    assert compared.runs[0].scores["image_dice"] == pytest.approx(np.mean(dices), abs=5e-3)


def test_report_says_the_same_in_every_form(compared, tmp_path):
    numbers = json.loads(json.dumps(compared.to_dict()))
    assert [run["name"] for run in numbers["runs"]] == ["dense", "lean"]
    lean, dense = numbers["runs"][1], numbers["runs"][0]
    assert lean["ratios"]["macs"] == pytest.approx(lean["macs"] / dense["macs"])
    assert lean["fps"] == pytest.approx(1e3 / lean["ms"])
    assert "1 thread" in numbers["measured"]
    assert "3x32x32" in numbers["measured"]
    assert f"{lean['image_dice']:.3f}" in str(compared)
    assert len(numbers["cases"]) == 4
    worst = [np.mean(each["dice"]) for each in numbers["cases"][:2]]
    assert worst[0] <= worst[1]


def test_the_optimised_models_are_timed_in_turns_with_the_plain_ones(two_runs, monkeypatch, browser):
    turns = []
    real = speed.interleave
    monkeypatch.setattr(speed, "interleave", lambda calls, **given: turns.append(set(calls)) or real(calls, **given))
    report = compare_runs(two_runs, cases=0, budget_s=0.05, optimize_s=0.05, threads=1)
    assert turns == [{"0 plain", "1 plain", "0 fast", "1 fast"}]
    assert set(report.optimised) == {"dense", "lean"}
    for run, numbers in zip(report.runs, report.to_dict()["runs"], strict=True):
        assert numbers["engine"] == report.optimised[run.name].engine
        assert numbers["fast_fps"] == pytest.approx(1e3 / numbers["fast_ms"])
    assert "Frames/s, optimised" in str(report)
    page = render(report)
    assert "lean in plain PyTorch: " in page
    assert "hollow: plain PyTorch" in page
    dom, console = browser(page)
    assert console == []
    assert dom.count('class="mark"') >= 4
    plain = compare_runs(two_runs[:1], cases=0, budget_s=0.01)
    assert "optimised" not in str(plain)
    assert "hollow" not in render(plain)


def test_one_file_is_written_that_the_browser_likes(two_runs, tmp_path, browser):
    out = build_report(two_runs, tmp_path / "deep" / "report.html", cases=3, budget_s=0.05)
    assert out == tmp_path / "deep" / "report.html"
    assert out.stat().st_size < 1_000_000
    dom, console = browser(out.read_text())
    assert console == []
    assert len(re.findall('class="tile[ "]', dom)) == 3 * 4


def test_threads_are_given_back(two_runs):
    before = torch.get_num_threads()
    assert "2 threads" in compare_runs(two_runs[:1], threads=2, cases=0, budget_s=0.01).measured
    assert torch.get_num_threads() == before


def test_missing_weights_cost_one_run_its_measures_only(two_runs, tmp_path):
    broken = shutil.copytree(two_runs[1].path, tmp_path / "killed")
    (broken / "model.safetensors").unlink()
    report = compare_runs([two_runs[0], broken], cases=2, budget_s=0.01)
    assert report.runs[0].scores["image_dice"] == pytest.approx(report.runs[0].value("image_dice"))
    assert report.runs[1].value("image_dice") == 0.4  # what its own training wrote down
    said = " | ".join(report.runs[1].remarks)
    assert "could not be loaded" in said
    assert "training stored" in said
    assert report.runs[0].remarks == []


def test_data_that_is_gone_leaves_the_stored_scores(two_runs, tmp_path):
    moved = shutil.copytree(two_runs[0].path, tmp_path / "moved")
    recipe = (moved / "recipe.toml").read_text().replace('data = "', 'data = "/gone')
    (moved / "recipe.toml").write_text(recipe)
    report = compare_runs([moved, two_runs[1]], cases=2, budget_s=0)
    assert report.cases == []
    assert any("cannot be read" in text for text in report.remarks)
    assert any("different data" in text for _, text in report.all_remarks)
    assert report.runs[0].value("dice") == 0.5
    with pytest.raises(BadInput):
        compare_runs([moved], data=str(tmp_path / "nothing"), budget_s=0)


def test_somebodys_python_file_is_not_run(two_runs, tmp_path):
    evil = shutil.copytree(two_runs[0].path, tmp_path / "evil")
    code = tmp_path / "model.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (evil / "model.json").write_text(json.dumps({"format": 1, "reference": f"{code}:make", "swaps": []}))
    report = compare_runs([evil], budget_s=0, cases=0)
    assert not (tmp_path / "ran").exists()
    assert any("trust" in remark for remark in report.runs[0].remarks)


def test_bad_calls_are_refused(two_runs, tmp_path):
    with pytest.raises(BadInput, match="at least one"):
        compare_runs([])
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        compare_runs(two_runs, split="tets")
    with pytest.raises(BadInput, match="cases=-1"):
        compare_runs(two_runs, cases=-1)
    with pytest.raises(BadInput, match="optimize_s=-1"):
        compare_runs(two_runs, optimize_s=-1)
    with pytest.raises(BadInput, match="is not a run folder"):
        compare_runs([tmp_path])
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(BadInput, match="cannot be written"):
        build_report(two_runs[:1], file / "report.html", budget_s=0, cases=0)
    assert file.read_text() == "old"


def test_a_run_folder_may_be_given_as_object_or_path(two_runs):
    assert compare_runs([RunFolder(two_runs[0].path)], budget_s=0, cases=0).runs[0].name == "dense"
