"""A small dense network, and stages that take no time: for tests of what the whole way does with them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from leanconv.convert import Plan, apply_, plan
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.stages import Stages
from leanconv.planner.lean.subject import Score, store_model, write_version
from leanconv.runs import RunFolder, load

REFERENCE = "leanconv:unet?base=4&levels=1"


class Quick:
    """A subject whose scores are given: of the dense network, after the fit, after the recovery."""

    measure, split, judged, visible = "top-1", "test", "5 test images", False

    def __init__(self, run, scores, calls):
        self.run, self.scores, self.calls = run, scores, calls
        self.network, self.inputs = run.load_model(), torch.zeros(1, 3, 16, 16)

    def calibration(self):
        return [torch.zeros(2, 3, 16, 16)]

    def score(self, network):
        lean = any(type(module).__name__ == "DepthwiseSeparableConv2d" for module in network.modules())
        self.calls.append("score fit" if lean else "score dense")
        return Score(self.scores[1 if lean else 0], {}, {})

    def write(self, folder, network, plan, score):
        write_version(folder, self.run, network, plan)

    def recover(self, fitted, out, again, error=None):
        self.calls.append("recover")
        network = fitted.load_model()
        write_version(RunFolder(out), fitted, network, Plan([]))
        return Score(self.scores[2], {}, {})

    def export(self, folder, path):
        raise AssertionError("no test here exports")


@pytest.fixture
def dense(tmp_path):
    """The folder of a dense network."""
    torch.manual_seed(0)
    run = RunFolder(tmp_path / "dense")
    store_model(run, REFERENCE, load(REFERENCE).eval())
    return run


@pytest.fixture
def way(dense, tmp_path):
    """A function that goes the way with given scores and a given ratio of speeds; `calls` lists the work it did."""

    class Way:
        calls: list = []
        asked = Asked(model=str(dense.path), out=str(tmp_path / "out"), to="depthwise_separable")

        def stages(self, scores=(0.9, 0.5, 0.89), ratio=2.0, noise=0.05, **others):
            def find(subject, asked, place):
                self.calls.append("plan")
                return plan(subject.network, subject.inputs, to=asked.to), {"how": asked.to}

            def fit(network, steps, subject):
                self.calls.append("fit")
                return apply_(network, steps).to_dict()

            def race(dense, lean, inputs, *, budget_s, engines, progress):
                self.calls.append(f"race {'again' if engines else 'all'}")
                one = {"engine": "eager", "median_ms": 2.0, "p95_ms": 2.0, "iqr_ms": 0.1, "rounds": 9}
                lean_one = one | {"median_ms": 2.0 / ratio}
                bounds = {"low": ratio * (1 - noise), "middle": ratio, "high": ratio * (1 + noise)}
                return {"dense": one, "lean": lean_one, "ratio": bounds, "where": "a test", "threads": 1}

            def opened(asked, place, report, *, trust_code):
                return Quick(RunFolder(asked.model), scores, self.calls)

            return replace(Stages(opened, find, fit, race), **others)

    made = Way()
    made.calls = []
    return made


@pytest.fixture
def broken(dense):
    """The dense network with one NaN."""
    network = dense.load_model()
    with torch.no_grad():
        next(module for module in network.modules() if isinstance(module, nn.Conv2d)).weight[0, 0, 0, 0] = float("nan")
    dense.save_model(network)
    return dense
