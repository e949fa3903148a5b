"""Weights as safetensors: write them atomically, read them strictly, and never unpickle."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.files import replace_atomic
from leanconv.text import is_utf8

# First bytes of other formats that are often mistaken for safetensors. Those files are not opened further.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes: it holds a pickle, which can run code"),
    (b"\x80", "a pickle, which can run code"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
)
_SHOWN = 3  # names shown for each kind of mismatch


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """Write a model's parameters and buffers (state_dict) as safetensors, atomically. Tied tensors are written once.

    Raises: BadInput if state is no tensor or has no storage (meta device), or if writing fails.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if what := _not_storable(tensor):
            raise BadInput(f"{name}: {what} cannot be stored as safetensors; only plain tensors with data can")
        tensors[name] = tensor
    tied = _tied(tensors)
    # Clone, because safetensors refuses shared storage, and a view would store its whole base.
    kept = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items() if n not in tied}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(kept, temporary, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        temporary.chmod(mode)  # safetensors leaves a file that nobody else may read

    return replace_atomic(path, write)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` from a file that `save_weights` wrote for the same model. An error changes nothing.

    Raises: BadCheckpoint if the file is missing, damaged, no safetensors, or another model's.
    """
    model = getattr(model, "_orig_mod", model)
    model.load_state_dict(stored_weights(model, path), strict=False)


def stored_weights(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """What `load_weights` fills a model with. Raises BadCheckpoint as it does; nothing is changed."""
    stored = read_tensors(path)
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for name, first in _tied(state).items():  # stored once, under the first name
        if name not in stored and first in stored:
            stored[name] = stored[first]
    complaints = mismatch(state, stored)
    if complaints:
        raise BadCheckpoint(f"{path}: these are another model's weights: {'; '.join(complaints)}")
    return {name: stored[name] for name in state}


def holds_weights(model: nn.Module, path: str | Path) -> bool:
    """Whether a file contains exactly the model's weights."""
    try:
        stored = read_tensors(path)
    except BadCheckpoint:
        return False
    now = model.state_dict()
    return all(name in now and torch.equal(value, now[name].cpu()) for name, value in stored.items())


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file to the CPU. Raises BadCheckpoint if it is missing or damaged."""
    path = Path(path)
    if path.exists() and not path.is_file():  # reading a pipe or a device could block for ever
        raise BadCheckpoint(f"{path}: the weights cannot be read: this is no file")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise BadCheckpoint(f"{path}: the weights cannot be read: {error.strerror or error}") from error
    if not start:
        raise BadCheckpoint(f"{path}: the file is empty")
    for magic, what in _OTHERS:
        # A safetensors file starts with its header's length, which may match any magic byte. Check both.
        if start.startswith(magic) and start[8:9] != b"{":
            raise BadCheckpoint(f"{path}: this is no safetensors file but {what}; it was not opened")
    try:
        if not is_utf8(path):  # safetensors cannot open this path
            return load(path.read_bytes())
        with safe_open(path, "pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"{path}: the weights are damaged or truncated, or no safetensors at all: {error}"
        ) from error


def _tied(state: dict[str, Tensor]) -> dict[str, str]:
    """Return name -> first name, for tensors that share memory with an earlier one."""
    seen: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if (first := seen.setdefault(place, name)) != name:
            tied[name] = first
    return tied


def mismatch(state: dict[str, Tensor], stored: dict[str, Tensor], *, exact: bool = False) -> list[str]:
    """Return the differences between stored tensors and a model's in names, sizes and number types.

    `exact`: the width of the number type must match too.
    """
    missing = [name for name in state if name not in stored]
    extra = [name for name in stored if name not in state]
    both = [name for name in state if name in stored and not is_lazy(state[name])]
    shapes = [f"{n} is {_size(stored[n])}, not {_size(state[n])}" for n in both if stored[n].shape != state[n].shape]
    types = [
        f"{n} is {_dtype(stored[n])}, not {_dtype(state[n])}"
        for n in both
        if stored[n].dtype.is_floating_point != state[n].dtype.is_floating_point
        or (exact and stored[n].dtype != state[n].dtype)
    ]
    sorts = {"it lacks": missing, "it has besides": extra, "other sizes": shapes, "other number types": types}
    return [f"{what} {_few(names)}" for what, names in sorts.items() if names]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _not_storable(tensor: object) -> str:
    """Return why the value is not a plain tensor with data, or ""."""
    if not isinstance(tensor, Tensor):
        return f"extra state of type {type(tensor).__name__}"
    if is_lazy(tensor):
        return "a lazy parameter without sizes (run the model once)"
    if tensor.is_meta:
        return "a tensor without data"
    if tensor.is_quantized:
        return "a quantised tensor"
    return "a sparse tensor" if tensor.layout != torch.strided else ""
