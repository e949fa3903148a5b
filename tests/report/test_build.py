"""The whole way from run folders to the page: its numbers against own counts; what is missing has its remark."""

import json
import math
import re
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput, UnknownName
from leanconv.files import write_json
from leanconv.report import Report, build_report, compare_runs, speed
from leanconv.report.page import render
from leanconv.report.summary import RunSummary
from leanconv.runs import RunFolder
from leanconv.train.data.augment import to_float
from tests.report.conftest import make_data, make_run


@pytest.fixture(scope="module")
def compared(two_runs):
    return compare_runs(two_runs, cases=4, budget_s=0.1, threads=1)


def test_counts_are_those_of_an_independent_counter(compared, two_runs):
    for folder, run in zip(two_runs, compared.runs, strict=True):
        model = folder.load_model()
        with FlopCounterMode(display=False) as counter:
            model(torch.rand(1, 3, 40, 56))  # the images' size, a multiple of 4 already
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
    assert "3x40x56" in numbers["measured"]
    assert numbers["image_size"] == [40, 56]
    assert f"{lean['image_dice']:.3f}" in str(compared)
    assert len(numbers["cases"]) == 4
    worst = [np.mean(each["dice"]) for each in numbers["cases"][:2]]
    assert worst[0] <= worst[1]
    assert [each["group"] for each in numbers["cases"]] == ["worst", "worst", "typical", "best"]
    assert numbers["verdict"]["headline"] == str(compared).splitlines()[0]
    assert "56×40 px" in numbers["verdict"]["headline"]
    assert {"speed", "accuracy", "misses"} <= set(numbers["verdict"])
    assert len(lean["blocks_ms"]) == speed.BLOCKS
    assert lean["speed_ratio"]["low"] <= lean["speed_ratio"]["value"] <= lean["speed_ratio"]["high"]


def test_the_optimised_models_are_timed_in_turns_with_the_plain_ones(two_runs, monkeypatch, browser):
    turns = []
    real = speed.interleave
    monkeypatch.setattr(speed, "interleave", lambda calls, **given: turns.append(set(calls)) or real(calls, **given))
    report = compare_runs(two_runs, cases=0, budget_s=0.05, optimize_s=0.05, threads=1)
    assert turns == [{"0 plain", "1 plain", "0 fast", "1 fast"}] * speed.BLOCKS
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


def test_what_is_found_is_counted_from_the_same_predictions(compared, two_runs):
    model, counts = two_runs[0].load_model(), []
    for i in range(6):
        image = np.asarray(Image.open(f"{compared.data}/test/images/part_{i}.png")).transpose(2, 0, 1)
        truth = np.asarray(Image.open(f"{compared.data}/test/masks/part_{i}.png")) > 127
        with torch.no_grad():
            guess = (model(to_float(torch.tensor(image)[None]))[0, 0].sigmoid() >= 0.45).numpy()
        counts.append(((guess & truth).sum(), truth.sum(), guess.sum()))
    found = compared.runs[0].found
    hits, there, marked = np.array(counts).T
    assert found.pixels == pytest.approx(hits.sum() / there.sum(), abs=5e-3)
    assert (found.with_defect, found.clean) == (5, 1)
    assert found.without_a_hit == ((there > 0) & (hits == 0)).sum()
    assert found.false_alarms == ((there == 0) & (marked > 0)).sum()
    assert [case.dices[0] for case in compared.cases] == [compared.runs[0].images[case.name] for case in compared.cases]


def test_thresholds_belong_to_classes_whatever_their_order(tmp_path):
    """metrics.json names them, and `predict` and `eval` go by the names."""
    root, classes, runs = make_data(tmp_path / "data"), ("background", "pit", "scratch"), []
    for path in (tmp_path / "data" / "test" / "masks").iterdir():
        mask = np.asarray(Image.open(path)) // 255
        Image.fromarray(mask * np.where(np.arange(56) < 16, 1, 2).astype(np.uint8)).save(path)
    for name, thresholds in (("one", {"pit": 0.1, "scratch": 0.9}), ("two", {"scratch": 0.9, "pit": 0.1})):
        model = "leanconv:unet?base=4&levels=2&out_channels=3"
        runs.append(make_run(tmp_path / name, model, f"{root}?classes={','.join(classes)}"))
        runs[-1].write_model(model, task="segment", classes=classes)
        write_json(runs[-1].metrics, {"threshold": None, "thresholds": thresholds})
    one, two = compare_runs(runs, cases=0, budget_s=0, threads=1).runs
    assert one.threshold == two.threshold == (0.1, 0.9)
    assert one.images == two.images
    assert len(one.images) == 6


def test_large_images_are_timed_in_the_tiles_that_predict_cuts(two_runs, tmp_path):
    root = tmp_path / "large" / "test"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        Image.new("RGB" if kind == "images" else "L", (1000, 300)).save(root / kind / "a.png")
    report = compare_runs(two_runs[:1], data=str(root.parent), cases=0, budget_s=0.01, threads=1)
    assert report.image_size == (300, 1000)
    assert report.shape == (1, 3, 300, 512)
    assert report.tiles == 3
    assert report.runs[0].ms == pytest.approx(np.median(report.runs[0].blocks_ms))
    once = compare_runs(two_runs[:1], budget_s=0, cases=0).runs[0].costs["macs"] / (40 * 56)
    assert report.runs[0].costs["macs"] == pytest.approx(3 * 300 * 512 * once)


def test_images_of_several_sizes_are_timed_at_the_most_common_one(two_runs, tmp_path):
    root = tmp_path / "mixed" / "test"
    for i, size in enumerate([(40, 30), (50, 34), (50, 34)]):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if kind == "images" else "L", size).save(root / kind / f"{i}.png")
    report = compare_runs(two_runs[:1], data=str(root.parent), cases=0, budget_s=0.01, threads=1)
    assert report.image_size == (34, 50)
    assert report.shape == (1, 3, 36, 52)  # padded to multiples of 4
    assert any("2 sizes" in remark for remark in report.remarks)
    assert "padded to 52×36 px" in render(report)


def test_speed_that_cannot_be_repeated_is_said_with_spread_and_reason():
    run = RunSummary("unet", ms=10.0, blocks_ms=(10.0, 10.0, 12.0))
    report = Report([run], others=0.6)
    said = speed.repeatability(report)
    assert "of unet (in plain PyTorch) differ by 20 %" in said
    assert "Other programs used 60 % of the processors" in said
    run.blocks_ms = (10.0, 10.1, 10.2)
    assert speed.repeatability(report).startswith("Other programs used 60 % of the processors")
    report.others = 0.02
    assert speed.repeatability(report) == ""
    run.blocks_ms, report.others = (10.0, 10.0, 12.0), math.nan
    assert "The reason is not known" in speed.repeatability(report)


def test_other_programs_are_seen():
    with speed._others() as share:
        time.sleep(0.05)
    assert math.isnan(share[0]) or 0 <= share[0] <= 1


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
