"""What judges a run's file in int8: Dice or top-1 where the images have labels, else agreement with the network."""

from typing import Any

import torch
from torch import nn

from leanconv.deploy.camera import Camera, Contract
from leanconv.planner.lean.agreement import DICE, OUTPUT, TOP1, Agreement, measure_of
from leanconv.planner.pictures import camera_frames
from leanconv.runs import RunFolder
from leanconv.train.data.unlabelled import is_unlabelled
from leanconv.train.inference.contract import Check, lost_in_int8
from leanconv.train.tasks.task import open_run_data

_WORDS = {TOP1: "top-1 as in float", DICE: "Dice with the float masks", OUTPUT: "outputs as in float"}


def judge_of(network: nn.Module, contract: Contract, run: RunFolder, source: str, split: str) -> Check:
    """A check of a file for cameras, higher is better. Raises BadInput for data of other classes."""
    if is_unlabelled(source):
        return agreement_with(network, contract, camera_frames(source, run, split))
    return lost_in_int8(contract, open_run_data(run, source, split), split)


def agreement_with(network: nn.Module, contract: Contract, frames: list[dict[str, Any]]) -> Check:
    """A check of how far a file agrees with the network on images without labels; 1 for the network itself."""
    own = Camera(network, contract).eval()
    with torch.no_grad():
        answers = [own(**frame)["logits"] for frame in frames]
    measure = measure_of(answers[0])

    def check(form: nn.Module) -> dict[str, float]:
        found = Agreement(measure)
        with torch.no_grad():
            for frame, answer in zip(frames, answers, strict=True):
                found.add(answer, form(**frame)["logits"])
        return {_WORDS[measure]: found.value}

    return check
