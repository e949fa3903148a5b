"""Tensors computed from parameters alone (mixed kernels, normalised weights), with those parameters' names."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Origins:
    """The names of the parameters behind each tensor of a model's run."""

    def __init__(self, model: nn.Module) -> None:
        # By storage. Keeping the tensors alive keeps their storages' addresses from being reused.
        self._names: dict[int, frozenset[str]] = {}
        self._kept: list[Tensor] = []
        for name, parameter in model.named_parameters():
            self._remember(parameter, frozenset([name]))
        for buffer in model.buffers():
            self._remember(buffer, frozenset())

    def of(self, value: Any) -> frozenset[str] | None:
        """The parameters behind a tensor; None if it depends on the model's input."""
        key = _storage(value) if isinstance(value, Tensor) else None
        return self._names.get(key) if key is not None else None

    def follow(self, outputs: Sequence[Tensor], origins: Sequence[frozenset[str] | None]) -> None:
        """Record an operation's outputs, given the origins of its inputs."""
        known = [names for names in origins if names is not None]
        for tensor in outputs:
            if len(known) == len(origins):
                self._remember(tensor, frozenset().union(*known))
            elif (key := _storage(tensor)) is not None:
                self._names.pop(key, None)

    def _remember(self, tensor: Tensor, names: frozenset[str]) -> None:
        key = _storage(tensor)
        if key is not None:
            self._names[key] = names
            self._kept.append(tensor)


def _storage(tensor: Tensor) -> int | None:
    """The identity of a tensor's storage, equal for views of it; None for tensors without storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except RuntimeError:  # sparse tensors and wrapper subclasses have none
        return None
