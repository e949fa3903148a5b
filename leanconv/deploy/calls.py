"""A model's call taken apart: its tensors as a flat list, and the frame (structure and constants) they came from.

Runtimes know flat lists of tensors only; models take and give tuples, dicts and plain numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Frame:
    """What is left of a nested value when its tensors are taken out: `split` and `join` are inverse."""

    spec: TreeSpec
    constants: tuple[tuple[int, Any], ...]  # place among the leaves, value

    @classmethod
    def split(cls, value: Any) -> tuple[list[Tensor], Self]:
        """The tensors of `value` in order, and the frame around them."""
        leaves, spec = tree_flatten(value)
        constants = tuple((i, leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)], cls(spec, constants)

    def join(self, tensors: Sequence[Tensor]) -> Any:
        """The value with these tensors in place of the ones that were taken out."""
        fixed, rest = dict(self.constants), iter(tensors)
        count = len(tensors) + len(fixed)
        return tree_unflatten([fixed[i] if i in fixed else next(rest) for i in range(count)], self.spec)


class FlatModel(nn.Module):
    """A model that takes and gives tensors one after another; constants of the call are built in."""

    def __init__(self, model: nn.Module, frame: Frame) -> None:
        super().__init__()
        self.model = model
        self.frame = frame

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.frame.join(tensors)
        return tuple(Frame.split(self.model(*args, **kwargs))[0])
