"""The network that becomes lean, and what its data says of any version of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from leanconv.convert import Plan
from leanconv.errors import BadInput, UntrustedCode
from leanconv.files import read_json, write_json
from leanconv.runs import RunFolder, load
from leanconv.runs.kinds import read
from leanconv.text import one_line


@dataclass(frozen=True)
class Score:
    """One version's score: `value` from 0 to 1, larger is better; `chosen` and `details` are for its metrics.json."""

    value: float
    chosen: dict[str, Any]
    details: dict[str, Any]


class Subject(Protocol):
    """What the stages need to know. Labelled data and unlabelled images each have their own.

    Attributes:
        run: the folder of the dense network.
        network: the dense network, in eval mode on the CPU.
        inputs: `N C H W`, what is counted and timed.
        measure: the score's name, "top-1".
        judged: what the score is of, "10000 test images".
        split: the split's name in metrics.json.
        visible: whether bars are drawn.
    """

    run: RunFolder
    network: nn.Module
    inputs: Tensor
    measure: str

    @property
    def split(self) -> str: ...

    @property
    def judged(self) -> str: ...

    @property
    def visible(self) -> bool: ...

    def calibration(self) -> Sequence[Any]:
        """The batches that search and fit see: images, or pairs of images and labels."""

    def score(self, network: nn.Module) -> Score: ...

    def write(self, folder: RunFolder, network: nn.Module, plan: Plan, score: Score) -> None:
        """Write a version as a run folder that every command takes."""

    def recover(self, fitted: RunFolder, out: Path, again: str, error: float | None = None) -> Score:
        """Train the fitted network on, the dense one its teacher; leaves a run folder at `out`. Goes on if it can.

        error: of the fitted network's outputs on images held out, relative to the dense one's; None: not known.
        """

    def export(self, folder: RunFolder, path: Path) -> Any:
        """Write a version as a file that is verified against it: an `Exported`."""


def check_finite(network: nn.Module, where: object) -> None:
    """Raise BadInput naming the first parameter or statistic of a network that has NaN or infinity in it."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{where}: {name!r} has NaN or infinite values: take an earlier checkpoint, or train again")


def write_version(folder: RunFolder, like: RunFolder, network: nn.Module, plan: Plan) -> None:
    """Write weights, then model.json: the reference of `like`, its swaps and those of the plan."""
    before = read_json(like.model_json)
    pairs = dict(before.get("swaps", [])) | {swap.name: str(swap.to) for swap in plan.swapped}
    folder.metrics.unlink(missing_ok=True)  # the scores of other weights
    folder.save_model(network)
    write_json(folder.model_json, before | {"swaps": [list(pair) for pair in pairs.items()]})


def store_model(folder: RunFolder, reference: str, network: nn.Module, **meaning: Any) -> None:
    """Write a model that is no run as one: fresh weights exist once only, and every stage needs the same."""
    folder.save_model(network)
    folder.write_model(reference, **meaning)


def load_asked(model: str, *, trust_code: bool) -> nn.Module:
    """The network of a reference that is no run folder, in eval mode.

    Raises: UntrustedCode for a Python file without `trust_code`: the reference may stand in somebody's lean.json.
    """
    reference = read(model)
    if reference.kind == "code" and not trust_code:
        raise UntrustedCode(
            one_line(
                f"the network is made by running {reference.name}:{reference.factory}; read that file, and say "
                "--trust-code (or trust_code=True) if you trust it"
            )
        )
    return load(model, trust_code=trust_code).eval()


def is_run(model: str) -> bool:
    """Whether a reference names a run folder. Raises BadInput for a path that is no folder."""
    reference = read(model)
    if reference.kind == "path" and not Path(reference.name).is_dir():
        raise BadInput(one_line(f"{model!r} is no model and no run folder; write a folder, or leanconv:resnet20_cifar"))
    return reference.kind == "path"
