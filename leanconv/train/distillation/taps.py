"""Taps: hooks that keep what named layers gave in a model's last forward pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from leanconv.running import tensors


class Taps:
    """The outputs of layers in the last forward pass, by name; a shared layer has those of each call.

    A copy of the model, by `copy.deepcopy` or pickle, has no taps: an average of the weights disturbs nothing.

    Args:
        model: whose forward pass begins a new record.
        names: of its layers.
        always: also of passes without gradients: an evaluation would hold all maps of a batch at once.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], *, always: bool = False) -> None:
        self.seen: dict[str, list[Any]] = {}
        names = list(names)
        self._handles: list[RemovableHandle] = []
        if names:
            self._handles.append(model.register_forward_pre_hook(_Begin(self.seen)))
        for name in names:
            keep = _Keep(self.seen, name, always=always)
            self._handles.append(model.get_submodule(name).register_forward_hook(keep))

    def take(self) -> dict[str, list[Tensor]]:
        """The tensors of each layer that ran; they are forgotten here, so that no graph is kept alive."""
        found = {name: [t for t in tensors(outputs) if t.is_floating_point()] for name, outputs in self.seen.items()}
        self.seen.clear()
        return found

    def close(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()
        self.seen.clear()


class _Nothing:
    """The hook of a copied model."""

    def __call__(self, *_: Any) -> None:
        return None


class _Begin:
    def __init__(self, seen: dict[str, list[Any]]) -> None:
        self.seen = seen

    def __call__(self, *_: Any) -> None:
        self.seen.clear()

    def __reduce__(self) -> Any:
        return _Nothing, ()


class _Keep(_Begin):
    def __init__(self, seen: dict[str, list[Any]], name: str, *, always: bool) -> None:
        super().__init__(seen)
        self.name, self.always = name, always

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:  # type: ignore[override]
        if not (self.always or torch.is_grad_enabled()):
            return
        if self.name in self.seen:
            self.seen[self.name].append(output)
        else:
            self.seen[self.name] = [output]
