"""The checkpoint of a running training: one safetensors file, replaced at once; a kill leaves the old or the new.

Tensors are `model.*` (parameters and buffers) and `optimizer.N.*`; the step, the history and the other numbers are JSON
in the file's header. No random state is in it: every random number of step n is drawn after seeding with (seed, n,
process).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadCheckpoint
from leanconv.files import write_atomic


@dataclass
class State:
    """Where a run stands.

    Attributes:
        step: steps done.
        loss_sum, loss_steps: of the running epoch.
        seconds: of training, over all the times it was resumed.
        best, best_epoch: the largest validation score so far; -1 before the first.
        history: a row for each validated epoch.
        images: training images, whose order the steps follow; 0: not written down.
        schedule: of `leanconv.nn.Schedule`; empty: not written down.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)


def save(
    path: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: dict[str, Any] | None = None
) -> None:
    """Write everything that the next step depends on. Raises BadInput where the file cannot be written."""
    from safetensors.torch import save as to_bytes

    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    plain: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else plain)[f"optimizer.{index}.{key}"] = value
    header = {"state": asdict(state), "optimizer": plain, "scaler": scaler or {}}
    # Clones: safetensors refuses tensors that share memory, and takes contiguous ones only.
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_atomic(path, to_bytes(content, metadata={"leanconv": json.dumps(header)}))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """Put model and optimizer where `save` found them; returns the state and the loss scaler's.

    Raises: BadCheckpoint for a file that is damaged, no checkpoint, or of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["leanconv"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        state = State(**header["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"{path}: is no checkpoint of a training run: {error}") from error
    try:
        model.load_state_dict(_below(tensors, "model."))
        _load_optimizer(optimizer, _below(tensors, "optimizer.") | _below(header["optimizer"], "optimizer."))
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadCheckpoint(f"{path}: belongs to another model or optimizer: {reason}") from error
    return state, header["scaler"]


def _below(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, entries: dict[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in entries.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # In the parameter's memory format: another one takes another code path, which rounds otherwise.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
