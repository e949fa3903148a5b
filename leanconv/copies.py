"""Copies of modules that share nothing with the original, whatever a training has left in it."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from leanconv.errors import BadInput

M = TypeVar("M", bound=nn.Module)


def copied(module: M) -> M:
    """A deep copy. A tensor that belongs to a graph of gradients becomes one that does not.

    Such tensors are the weights that the older `torch.nn.utils.weight_norm` and `spectral_norm` compute before every
    call, and whatever else a forward keeps. Raises BadInput, with the layer and the attribute, for what has no copy.
    """
    try:
        return _deep(module)
    except Exception as error:
        raise BadInput(f"the model cannot be copied: {_culprit(module) or _short(error)}") from error


class _Detaching(TorchFunctionMode):
    """PyTorch copies no tensor that was computed under autograd."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _deep(value: Any) -> Any:
    with _Detaching():
        return copy.deepcopy(value)


def _culprit(model: nn.Module) -> str:
    """Which attribute of which layer it was; "" where each can be copied for itself."""
    for name, layer in model.named_modules():
        for key, value in vars(layer).items():
            if key == "_modules":
                continue
            try:
                _deep(value)
            except Exception as error:
                held = f"a hook ({key})" if key.endswith("hooks") else f"its attribute {key!r} ({type(value).__name__})"
                return f"of {f'layer {name!r}' if name else 'the model itself'}, {held}: {_short(error)}"
    return ""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
