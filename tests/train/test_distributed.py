"""Two processes give the averaged gradients of one process with the joint batch."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train import setup
from leanconv.train.data.batches import Order
from leanconv.train.inference.score import read_metrics
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.segment import Segmentation

# No batch statistics: those are of each process's own images, by design of BatchNorm.
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 1, 3, padding=1))
"""

CLASSIFIER = """
from torch import nn

def net():
    features = [nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 3))
"""


# Asks its run to stop in the third training step, where the environment says so.
STOPS = (
    NET
    + """
import os, signal
class Stops(nn.Sequential):
    calls = 0
    def forward(self, x):
        self.calls += self.training
        if self.calls == 3 and "STOPS" in os.environ:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)

def stops():
    return Stops(*net())
"""
)


def launch(path, *words, **environment):
    """`leanconv train` on two processes of the CPU."""
    return subprocess.run(
        # accelerate's --cpu would need MPI for a second process; --multi_gpu is its name for torch's own launcher
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
            "-m",
            "leanconv",
            "train",
            str(path),
            "--trust-code",
            "--json",
            *words,
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_and_one(tiny_data, tmp_path):
    """SGD without decay: after n steps the weights are the start minus the rate times the sum of n gradients."""
    (tmp_path / "net.py").write_text(NET)
    common = {"model": f"{tmp_path / 'net.py'}:net", "data": str(tiny_data), "size": 24, "batch": 4, "steps": 3}
    common |= {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant"}
    common |= {"device": "cpu", "threads": 1, "workers": 0}
    path = Recipe(**common, out=str(tmp_path / "two")).write(tmp_path / "two.toml")
    launched = launch(path)
    assert launched.returncode == 0, launched.stderr
    assert "2 processes" in launched.stderr
    assert launched.stdout.count('"run"') == 1, "only the main process reports"
    two = RunFolder(tmp_path / "two")
    one = fit(Recipe(**common, out=str(tmp_path / "one")), progress=False, trust_code=True)
    weights, single = load_file(setup.last(two)), load_file(setup.last(one))
    start = setup.build_model(Recipe(**common), True)
    assert weights.keys() == single.keys()
    for key in weights:
        assert torch.allclose(weights[key], single[key], rtol=0, atol=1e-6), key
    moved = max(float((weights[f"model.{k}"] - v).abs().max()) for k, v in start.state_dict().items())
    assert moved > 1e-3, "nothing was learnt, so nothing was compared"
    # the metrics are gathered: every image counted once
    for split, images in (("val", 6), ("test", 5)):
        assert read_metrics(two)[split]["images"] == images
        assert read_metrics(two)[split]["objects"]["true"] == read_metrics(one)[split]["objects"]["true"] > 0
        assert read_metrics(two)[split]["dice"] == pytest.approx(read_metrics(one)[split]["dice"], abs=1e-4)
    assert two.history.read_text().split(",")[:9] == one.history.read_text().split(",")[:9]


@pytest.mark.slow
def test_what_is_saved_is_of_all_processes(tiny_data, tmp_path):
    """Stopped in mid-epoch on two processes, gone on with on two and on one: the epoch's loss is that of all its steps.

    The main process's sum of losses was given to all of them.
    """
    (tmp_path / "net.py").write_text(STOPS)
    common = {"model": f"{tmp_path / 'net.py'}:stops", "data": str(tiny_data), "size": 24, "batch": 4, "epochs": 1}
    common |= {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant"}
    common |= {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1}
    path = Recipe(**common, out=str(tmp_path / "two")).write(tmp_path / "two.toml")
    stopped = launch(path, STOPS="1")
    assert "stopped at step 3 of 5, saved" in stopped.stderr
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    resumed = launch(path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    fit(Recipe(**common, out=str(tmp_path / "one")), resume=True, progress=False, trust_code=True)
    whole = fit(Recipe(**common, out=str(tmp_path / "whole")), progress=False, trust_code=True)
    losses = [
        float(RunFolder(tmp_path / name).history.read_text().split("\n")[1].split(",")[2])
        for name in ("whole", "two", "one")
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=1e-6)
    for name in ("two", "one"):
        weights, single = load_file(RunFolder(tmp_path / name).weights), load_file(whole.weights)
        assert all(torch.allclose(weights[key], single[key], rtol=0, atol=1e-6) for key in single)


def test_one_process_where_two_were_asked_for_is_said(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "--multi_gpu" in setup.launch_note(1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert setup.launch_note(1) == setup.launch_note(2) == ""


def test_processes_that_do_not_find_each_other_do_not_write_into_one_folder(monkeypatch):
    setup.accelerator(Recipe(steps=1, device="cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="2 processes were launched, accelerate joined 1"):
        setup.accelerator(Recipe(steps=1, device="cpu"))


def test_the_loss_of_shares_has_the_gradient_of_the_joint_batch():
    """Three processes in one: gradients of the shares, averaged, are those of the whole, Dice included."""
    task = Segmentation(("background", "defect"))
    scale = torch.randn(1, dtype=torch.float64, requires_grad=True)
    inputs, masks = torch.randn(6, 1, 5, 5, dtype=torch.float64), torch.randint(0, 2, (6, 5, 5))
    (joint,) = torch.autograd.grad(task.loss(inputs * scale, masks), scale)
    with torch.no_grad():
        p = (inputs * scale).float().sigmoid()
        sums = torch.stack([(p[:, 0] * masks).sum(), p.sum() + masks.sum()])
    shares = []
    for rank in range(3):
        loss = task.loss(inputs[rank::3] * scale, masks[rank::3], processes=3, total=lambda _: sums)
        shares.append(torch.autograd.grad(loss, scale)[0])
    assert torch.stack(shares).mean().item() == pytest.approx(joint.item(), rel=1e-5)
    naive = [torch.autograd.grad(task.loss(inputs[r::3] * scale, masks[r::3]), scale)[0] for r in range(3)]
    assert torch.stack(naive).mean().item() != pytest.approx(joint.item(), rel=1e-5)


def test_shares_are_the_batch():
    whole = Order(11, 4, seed=7)
    assert whole.steps_per_epoch == 2
    for step in range(6):
        parts = [Order(11, 4, seed=7, rank=r, processes=2).at(step) for r in (0, 1)]
        assert sorted(parts[0] + parts[1]) == sorted(whole.at(step))
    epoch = [image for step in (0, 1) for image, _ in whole.at(step)]
    assert len(set(epoch)) == 8
    assert epoch != [image for step in (2, 3) for image, _ in whole.at(step)]


def test_a_set_smaller_than_the_batch_fills_it():
    order = Order(3, 7, seed=1)
    assert order.steps_per_epoch == 1
    images = [image for image, _ in order.at(0)]
    assert len(images) == 7
    assert set(images) == {0, 1, 2}
    assert len({seed for _, seed in order.at(0)}) == 7


@pytest.mark.slow
def test_two_processes_classify_as_one(coloured, tmp_path):
    """The same steps of the joint batch, and every image counted once, 15 on two processes too."""
    (tmp_path / "net.py").write_text(CLASSIFIER)
    common = {"model": f"{tmp_path / 'net.py'}:net", "data": str(coloured), "size": 16, "batch": 6, "steps": 6}
    common |= {"optimizer": "sgd", "lr": 0.3, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant"}
    common |= {"device": "cpu", "threads": 1, "workers": 0}
    launched = launch(Recipe(**common, out=str(tmp_path / "two")).write(tmp_path / "two.toml"))
    assert launched.returncode == 0, launched.stderr
    two = RunFolder(tmp_path / "two")
    one = fit(Recipe(**common, out=str(tmp_path / "one")), progress=False, trust_code=True)
    weights, single = load_file(setup.last(two)), load_file(setup.last(one))
    start = setup.build_model(Recipe(**common), True)
    for key in weights:
        assert torch.allclose(weights[key], single[key], rtol=0, atol=1e-6), key
    moved = max(float((weights[f"model.{k}"] - v).abs().max()) for k, v in start.state_dict().items())
    assert moved > 1e-3, "nothing was learnt, so nothing was compared"
    assert read_metrics(two)["val"] == read_metrics(one)["val"]
    assert read_metrics(two)["test"] == read_metrics(one)["test"]
    assert read_metrics(two)["test"]["images"] == sum(map(sum, read_metrics(two)["test"]["confusion"])) == 12
