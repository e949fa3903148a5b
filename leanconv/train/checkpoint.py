"""The checkpoint of a training: one safetensors file, replaced atomically; a kill leaves the old or the new one.

Tensors are `model.*` (parameters and buffers) and `optimizer.N.*`; the step, the history and the other numbers are JSON
in the file's header. No random state is in it: every random number of step n is drawn after seeding with (seed, n,
process). No file is trusted: each entry is checked before any is used.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.files import write_atomic
from leanconv.runs.weights import mismatch, read_tensors
from leanconv.train.optimizer import KEPT
from leanconv.train.state import State, number

_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def save(
    path: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: dict[str, Any] | None = None
) -> None:
    """Write the full state that the next step depends on. Raises BadInput if the file cannot be written."""
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
    """Restore model and optimizer; returns the state, and the loss scaler's.

    Raises: BadCheckpoint for a file that is damaged, no checkpoint, or of another model. Then nothing was changed.
    """
    header, tensors = _read(path)
    try:
        state = State.read(header["state"])
        scaler = _scaler(header["scaler"])
    except BadInput as error:
        raise BadCheckpoint(f"{path}: is no checkpoint of a training run: {error}") from error
    try:
        weights = _weights(_below(tensors, "model."), model)
        moments = _moments(_below(tensors, "optimizer.") | _below(header["optimizer"], "optimizer."), optimizer, state)
    except BadInput as error:
        raise BadCheckpoint(f"{path}: belongs to another model or optimizer: {error}") from error
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state, scaler


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors. Raises BadCheckpoint."""
    from safetensors import safe_open

    try:
        tensors = read_tensors(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["leanconv"])
    except (BadCheckpoint, KeyError, ValueError, RecursionError) as error:
        reason = "its header has no entry leanconv" if isinstance(error, KeyError) else error
        raise BadCheckpoint(f"{path}: is no checkpoint of a training run: {_after(path, reason)}") from error
    if not isinstance(header, dict) or any(not isinstance(header.get(key), dict) for key in ("optimizer", "scaler")):
        raise BadCheckpoint(f"{path}: is no checkpoint of a training run: its header has no optimizer and scaler")
    return {"state": None, **header}, tensors


def _after(path: Path, reason: object) -> str:
    return str(reason).removeprefix(f"{path}: ")


def _below(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _scaler(stored: dict[str, Any]) -> dict[str, Any]:
    if stored and (set(stored) != _SCALER or not all(number(value) and value >= 0 for value in stored.values())):
        names = ", ".join(sorted(_SCALER))
        raise BadInput(f"scaler={str(stored)[:80]}: must have {names}, each a number of at least 0")
    return stored


def _weights(stored: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors: all of them, of its sizes and number types, finite where its own are. Raises BadInput."""
    state = model.state_dict()
    if complaints := mismatch(state, stored, exact=True):
        raise BadInput("; ".join(complaints))
    for name, own in state.items():  # a buffer may hold -inf from the start, as attention's masks do
        if not torch.isfinite(stored[name]).all() and torch.isfinite(own).all():
            raise BadInput(f"{name} is not finite")
    return stored


def _moments(entries: dict[str, Any], optimizer: torch.optim.Optimizer, state: State) -> dict[int, dict[str, Any]]:
    """The optimizer's state of each parameter, validated. Raises BadInput."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    plain: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    kept = KEPT[type(plain)]
    found: dict[int, dict[str, Any]] = {}
    for name, value in entries.items():
        index, _, key = name.partition(".")
        if not (index.isdecimal() and len(index) < 10 and int(index) < len(parameters) and key in kept):
            raise BadInput(f"the optimizer has no entry {name[:80]!r}")
        if what := kept[key].why_not(value, parameters[int(index)], state.step):
            raise BadInput(f"optimizer entry {name}: {what}")
        found.setdefault(int(index), {})[key] = _laid_out(value, parameters[int(index)])
    for place, entry in found.items():
        if lacking := kept.keys() - entry.keys():
            raise BadInput(f"the optimizer's entries of parameter {place} lack {', '.join(sorted(lacking))}")
    if state.step and not found and not all(each.optional for each in kept.values()):
        raise BadInput(f"the optimizer has no entries after {state.step} steps")
    return found


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """In the parameter's memory format: another format uses another code path, with other rounding."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value
