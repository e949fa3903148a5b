"""The original network and a copy whose layers change one after another, run on the same batches up to one module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert.tree import walk
from leanconv.copies import copied
from leanconv.errors import BadInput
from leanconv.running import Inputs, as_call, call, cloned, explained, map_tensors, shapes, to_eval_

HALVES = (torch.bfloat16, torch.float16)
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Reached(BaseException):
    """The module has run as often as it does: the rest of the forward is not needed."""


class Twin:
    """The original (never changed) and the copy; the copy of a half-precision network computes in float32.

    Attributes:
        places: per module of the original its counterpart in the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self.original, self.copy = model, copied(model)
        floats = {t.dtype for t in model.parameters() if t.is_floating_point()}
        self._widened = len(floats) == 1 and floats <= set(HALVES)
        if self._widened:
            self.copy.float()
        to_eval_(self.copy)
        self.copy.requires_grad_(False)
        self.places = dict(zip((s.module for s in walk(model)), walk(self.copy), strict=True))

    def inputs(self, batch: Inputs) -> Inputs:
        """The batch as the copy takes it."""
        if not self._widened:
            return batch
        widened: Inputs = map_tensors(lambda t: t.float() if t.dtype in HALVES else t, batch)
        return widened

    def run(self, batch: Inputs) -> Any:
        """What the copy returns. Raises BadInput where it does not run: a model may read its layers' weights itself."""
        positional, named = as_call(self.inputs(batch))
        with explained(f"inputs {shapes(batch)} with its new layers"):
            return self.copy(*positional, **named)

    def dtype(self, layer: nn.Conv2d) -> torch.dtype:
        """The type in which the copy of a layer computes."""
        return torch.float32 if self._widened else layer.weight.dtype

    def outputs(self, module: nn.Module, batch: Inputs, calls: int) -> list[Any]:
        """What the original's module returns in each call."""
        found: list[Any] = []

        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            found.append(cloned(output))

        # Before the user's hooks: they move to the new layer, and run after it.
        with _stopping(module, module.register_forward_hook(hook, prepend=True), found, calls, after=True):
            call(self.original, batch)
        return found

    def arguments(self, module: nn.Module, batch: Inputs, calls: int) -> list[Arguments]:
        """What the copy's module (given by the original's) is called with, each time."""
        found: list[Arguments] = []
        inner = self.places[module].module

        def hook(_: nn.Module, arguments: Any, named: Any) -> None:
            found.append(cloned((arguments, named)))

        with _stopping(inner, inner.register_forward_pre_hook(hook, with_kwargs=True), found, calls, after=False):
            self.run(batch)
        return found


@contextmanager
def _stopping(module: nn.Module, noting: Any, found: list[Any], calls: int, *, after: bool) -> Iterator[None]:
    """Stop the forward once the module was called `calls` times; remove the hooks in the end."""

    def stop(*_: Any) -> None:
        if len(found) == calls:
            raise _Reached

    stopping = module.register_forward_hook(stop) if after else module.register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            yield
    except _Reached:
        pass
    finally:
        stopping.remove()
        noting.remove()


def input_of(arguments: Arguments, name: str) -> Tensor:
    """The `N C H W` of a convolution's call. Raises BadInput for one sample without a batch dimension."""
    positional, named = arguments
    x = positional[0] if positional else next(iter(named.values()))
    if not isinstance(x, Tensor) or x.ndim != 4:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise BadInput(f"{name}: its input {shape} is no N C H W; give data in batches")
    return x
