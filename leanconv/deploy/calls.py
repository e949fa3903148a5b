"""Split a model's call into a flat list of tensors and a frame (structure and constants), and join them again.

Runtimes know flat lists of tensors only. Models also take and return tuples, dicts and plain numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Frame:
    """A nested value without its tensors. `split` and `join` are inverse."""

    spec: TreeSpec
    constants: tuple[tuple[int, Any], ...]  # index among the leaves, value

    @classmethod
    def split(cls, value: Any) -> tuple[list[Tensor], Self]:
        """Return the tensors of `value` in order, and the frame around them."""
        leaves, spec = tree_flatten(value)
        constants = tuple((i, leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)], cls(spec, constants)

    def join(self, tensors: Sequence[Tensor]) -> Any:
        """Return the nested value with these tensors."""
        fixed, rest = dict(self.constants), iter(tensors)
        count = len(tensors) + len(fixed)
        return tree_unflatten([fixed[i] if i in fixed else next(rest) for i in range(count)], self.spec)


class FlatModel(nn.Module):
    """A model that takes and returns flat tensors. The constants of the call are built in."""

    def __init__(self, model: nn.Module, frame: Frame) -> None:
        super().__init__()
        self.model = model
        self.frame = frame

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.frame.join(tensors)
        return tuple(Frame.split(self.model(*args, **kwargs))[0])


def as_numpy(tensor: Tensor) -> Any:
    """Return the tensor's memory as an array. Only tensors that are not contiguous on the CPU are copied."""
    if tensor.is_cpu and not tensor.requires_grad and tensor.is_contiguous():
        return tensor.numpy()  # the three steps below would take 2 µs without an effect
    return tensor.detach().cpu().contiguous().numpy()
