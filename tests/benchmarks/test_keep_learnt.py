"""The benchmark of the starts: its baselines against brute force, a whole round on a tiny run, a killed one goes on."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import keep_learnt
from benchmarks.baselines import Tucker2Conv2d
from leanconv import registry
from leanconv.runs import RunFolder, load
from leanconv.runs.digest import of_model
from leanconv.spec import ConvSpec


def distance(layer, conv, gram):
    rest = (layer.dense_weight() - conv.weight).detach().flatten(1)
    return float(torch.einsum("od,de,oe->", rest, gram, rest))


def test_the_baseline_is_its_dense_kernel_and_costs_what_it_says():
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1).double()
    layer, x = Tucker2Conv2d.from_conv(conv, share=0.5), torch.randn(2, 8, 9, 7, dtype=torch.float64)
    assert layer.project_(conv)
    y = torch.nn.functional.conv2d(x, layer.dense_weight(), conv.bias, 2, 1)
    assert torch.allclose(layer(x), y, atol=1e-12)
    cost = Tucker2Conv2d.cost(ConvSpec.from_conv(conv, x.shape), share=0.5)
    assert cost.params == sum(p.numel() for p in layer.parameters())


def test_the_baseline_of_full_rank_is_the_dense_layer():
    conv = nn.Conv2d(6, 6, 3, padding=1).double()
    layer = Tucker2Conv2d.from_conv(conv, share=1.0)
    assert layer.project_(conv)
    assert torch.allclose(layer.dense_weight(), conv.weight, atol=1e-7)


def test_the_covariance_helps_where_the_inputs_are_not_white():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
    mix = torch.randn(72, 72, dtype=torch.float64) * torch.logspace(0, -3, 72, dtype=torch.float64)
    gram = (mix @ mix.T)[None]
    white, aware = (Tucker2Conv2d.from_conv(conv, share=0.5) for _ in range(2))
    white.project_(conv)
    aware.project_(conv, gram)
    assert distance(aware, conv, gram[0]) < 0.8 * distance(white, conv, gram[0])


@pytest.mark.slow
def test_a_whole_round_and_one_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))  # the baselines are known here alone
    for name in ("whole.STEPS", "fitting.STEPS", "fitting.FRESH_STEPS"):  # how near a fit comes is no matter here
        monkeypatch.setattr(f"leanconv.convert.fit.{name}", (2, 2) if name == "whole.STEPS" else 2)
    dice = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for kind in ("a", "b"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = dice.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / kind / f"{number}.png")
    reference = "leanconv:resnet20_cifar?width=0.25&num_classes=2"
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.save_model(load(reference))
    run.write_model(reference, swaps=[])
    (run.path / "history.csv").write_text("epoch,top1\n3,0.5\n")
    out = tmp_path / "kept.json"
    words = [str(run.path), f"{tmp_path / 'data'}?val=0", "--images", "16", "--test", "8", "--out", str(out)]
    for operators in (["hetconv(part=4)"], ["hetconv(part=4)", "tucker2(share=0.45)"]):
        monkeypatch.setattr(sys, "argv", ["keep_learnt", *words, "--operators", *operators])
        keep_learnt.main()
    report = json.loads(out.read_text())
    assert [row["operator"] for row in report["rows"]] == ["hetconv(part=4)", "tucker2(share=0.45)"]
    assert all(0 <= row[init] <= 1 for row in report["rows"] for init in ("fresh", "project", "fit"))
    assert report["network"] == {"reference": reference, "epochs": 3, "weights": of_model(run.load_model())}
    assert capsys.readouterr().out.count("hetconv(part=4): {") == 1  # the second run took it from the file
    monkeypatch.setattr(keep_learnt, "fit_code", lambda operator: "another")
    keep_learnt.main()
    assert {row["code"] for row in json.loads(out.read_text())["rows"]} == {"another"}  # other code: measured again


def test_code_of_a_row_is_of_its_sources(tmp_path, monkeypatch):
    het, separable = (keep_learnt.fit_code(each) for each in ("hetconv(part=4)", "depthwise_separable"))
    assert het != separable
    assert het == keep_learnt.fit_code("hetconv(part=2)")
    assert keep_learnt.recovery_code("hetconv") != het
    shutil.copytree(keep_learnt.PACKAGE, tmp_path / "leanconv", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keep_learnt, "PACKAGE", tmp_path / "leanconv")
    assert keep_learnt.fit_code("hetconv(part=4)") == het
    before, settings = keep_learnt.recovery_code("hetconv"), keep_learnt.recipes.read("recover")
    monkeypatch.setattr(keep_learnt.recipes, "read", lambda name: settings | {"lr": 0.5})
    assert keep_learnt.recovery_code("hetconv") != before
    with (tmp_path / "leanconv/convert/fit/refine.py").open("a") as file:
        file.write("# other\n")
    assert keep_learnt.fit_code("hetconv(part=4)") != het
