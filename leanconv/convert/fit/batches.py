"""Calibration batches: read again for every layer, checked, without labels, a part held out to judge on."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import Dataset, IterableDataset

from leanconv.errors import BadInput, LeanconvError, error_line
from leanconv.running import Inputs, map_tensors, tensors

_MOST_HELD = 64  # images to judge on
_CHUNK = 32  # images of one tensor that run at a time
_FORMS = "give a tensor, a list of batches, or a DataLoader"


class Batches:
    """The user's batches, as the model takes them.

    A tensor alone is one set of images; it runs in parts. A dict alone is one batch of named arguments. Otherwise the
    data gives batches: a tensor, a dict, or a tuple. Of a tuple the model takes as many entries as its `forward`
    requires: what follows (labels) is left out. Optional arguments are named in a dict.

    Attributes:
        notes: what was left out, one line each.
    """

    def __init__(self, data: Any, model: nn.Module) -> None:
        self._data = _listed(data)
        self._required, self._names = _arguments(model)
        self._device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Inputs]:
        """Every batch on the model's device. Raises BadInput for no batch, no image, NaN or infinite numbers."""
        torch.manual_seed(0)  # a shuffling loader gives one order in each pass, so what is held out stays held out
        number = 0
        for number, batch in enumerate(_reading(self._data), 1):
            inputs: Inputs = map_tensors(lambda t: t.to(self._device), self._without_labels(batch, number))
            _check(inputs, number)
            yield inputs
        if not number:
            raise BadInput(f"data holds no batch: {_FORMS} with at least one image")

    def divided(self) -> tuple[Inputs, Iterator[Inputs], bool]:
        """Images to judge on, the batches to fit on, and whether the first are among the second (one picture)."""
        batches = iter(self)
        first, behind = _beginning(batches)
        count, size = sum(map(images, first)), images(first[0])
        if count < 2:
            return first[0], chain(behind, batches) if behind else iter(first), not behind
        held = min(_MOST_HELD, max(1, count // (2 if behind else 4)))
        whole = _joined(first)
        kept = [_cut(whole, start, min(start + size, count)) for start in range(held, count, size)]
        return _cut(whole, 0, held), chain(kept, behind, batches), False

    def _without_labels(self, batch: Any, number: int) -> Inputs:
        if isinstance(batch, Mapping):
            extra = [] if self._names is None else [str(key) for key in batch if key not in self._names]
            if extra and len(extra) == len(batch):
                known = ", ".join(sorted(self._names or ())) or "none"
                raise BadInput(
                    f"batch {number} of data names {', '.join(extra)}, and the model takes none of these; its "
                    f"arguments: {known}"
                )
            if extra:
                self._note(f"the model takes no argument {', '.join(extra)}: left out of each batch")
            return {key: value for key, value in batch.items() if str(key) not in extra}
        if isinstance(batch, list | tuple):
            kept = batch if self._required is None else batch[: max(1, self._required)]
            if len(kept) < len(batch):
                self._note(
                    f"of a batch's {len(batch)} entries the model takes {len(kept)}; the others (labels) are unused"
                )
            return tuple(kept)
        if isinstance(batch, Tensor):
            return batch
        raise BadInput(f"batch {number} of data is a {type(batch).__name__}; each is a tensor, a tuple or a dict")

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def images(inputs: Inputs) -> int:
    """The number of images, where every tensor has that many rows; 0 where the batch cannot be cut."""
    sizes = {t.shape[0] if t.ndim else 0 for t in tensors(inputs)}
    return sizes.pop() if len(sizes) == 1 else 0


def _beginning(batches: Iterator[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    """Alike batches from the front, with twice the images that are held out, and the batch that was read after them."""
    first = [next(batches)]
    for batch in batches:
        count = sum(map(images, first))
        if not count or count >= 2 * _MOST_HELD or not images(batch) or _kinds(batch) != _kinds(first[0]):
            return first, [batch]
        first.append(batch)
    return first, []


def _kinds(inputs: Inputs) -> list[Any]:
    """What batches must share to be joined: their structure, and of each tensor dtype and size but for the images."""
    found, structure = tree_flatten(inputs)
    return [structure, *((x.dtype, x.shape[1:]) if isinstance(x, Tensor) else repr(x) for x in found)]


def _joined(batches: list[Inputs]) -> Inputs:
    whole: Inputs = tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *batches)
    return whole


def _cut(inputs: Inputs, start: int, stop: int) -> Inputs:
    cut: Inputs = map_tensors(lambda t: t[start:stop], inputs)
    return cut


def _listed(data: Any) -> Iterable[Any]:
    """The data as something that gives its batches again and again."""
    if isinstance(data, Tensor):
        if data.ndim == 0:
            raise BadInput(f"data is a single number: {_FORMS}")
        return data.split(_CHUNK) if len(data) else []
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, tuple):
        raise BadInput("data is a tuple: write [(x, y)] for one batch of several inputs, or a list of batches")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise BadInput(f"data is a {type(data).__name__}, a set of single images; pass DataLoader(data, batch_size=32)")
    if isinstance(data, Iterator):
        raise BadInput(
            f"data is a {type(data).__name__}, which can be read once only, and each layer reads it again; "
            "give a list or a DataLoader"
        )
    if not hasattr(data, "__iter__") or isinstance(data, str | bytes):
        raise BadInput(f"data is a {type(data).__name__}: {_FORMS}")
    found: Iterable[Any] = data
    return found


def _reading(data: Iterable[Any]) -> Iterator[Any]:
    """The batches. Raises BadInput where the user's data set fails."""
    try:
        yield from data
    except LeanconvError:
        raise
    except Exception as error:
        raise BadInput(f"data cannot be read: {error_line(error, of_function=True)}") from error


def _check(inputs: Inputs, number: int) -> None:
    found = tensors(inputs)
    if not found or any(not t.numel() for t in found):
        raise BadInput(f"batch {number} of data holds no image")
    for tensor in found:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(f"batch {number} of data holds NaN or infinite numbers; leave such images out")


def _arguments(model: nn.Module) -> tuple[int | None, set[str] | None]:
    """How many positional arguments `forward` requires, and the names that it knows; None: any."""
    inner = model
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel) or "_orig_mod" in inner._modules:
        inner = inner._modules.get("_orig_mod") or inner.module  # type: ignore[assignment]
    try:
        parameters = list(inspect.signature(inner.forward).parameters.values())
    except (TypeError, ValueError):
        return None, None
    kinds = {p.kind for p in parameters}
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = None if inspect.Parameter.VAR_POSITIONAL in kinds else sum(p.default is p.empty for p in plain)
    names = None if inspect.Parameter.VAR_KEYWORD in kinds else {p.name for p in parameters}
    return required, names
