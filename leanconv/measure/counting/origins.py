"""Which tensors of a run were computed from parameters alone, and from which: a mixed kernel, a normed weight."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Origins:
    """The parameters, by name, that each tensor of a model's run was computed from."""

    def __init__(self, model: nn.Module) -> None:
        # By storage. The tensors are kept, so that no storage's place is taken by another one's while we look.
        self._names: dict[int, frozenset[str]] = {}
        self._kept: list[Tensor] = []
        for name, parameter in model.named_parameters():
            self._remember(parameter, frozenset([name]))
        for buffer in model.buffers():
            self._remember(buffer, frozenset())

    def of(self, value: Any) -> frozenset[str] | None:
        """The parameters that a tensor was computed from; None where the model's input had a part in it."""
        key = _storage(value) if isinstance(value, Tensor) else None
        return self._names.get(key) if key is not None else None

    def follow(self, made: Sequence[Tensor], origins: Sequence[frozenset[str] | None]) -> None:
        """Note that an operation made these tensors out of tensors of those origins."""
        known = [names for names in origins if names is not None]
        for tensor in made:
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
    """What two views of the same memory have in common; None for tensors without a storage of their own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except RuntimeError:  # sparse tensors and wrapper subclasses have none
        return None
