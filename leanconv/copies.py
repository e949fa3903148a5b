"""Copy modules so that the copy shares nothing with the original, even after training."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from leanconv.errors import BadInput

M = TypeVar("M", bound=nn.Module)


def copied(module: M) -> M:
    """Return a deep copy. Tensors that belong to an autograd graph are detached.

    The older `torch.nn.utils.weight_norm` and `spectral_norm` compute weights in an autograd graph before every call;
    other forwards may keep activations. Raises BadInput with layer and attribute if something cannot be copied.
    """
    try:
        return _deep(module)
    except Exception as error:
        raise BadInput(f"the model cannot be copied: {_culprit(module) or _short(error)}") from error


class _Detaching(TorchFunctionMode):
    """Detach tensors on deep copy, because PyTorch refuses to copy those computed under autograd."""

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
    """Name the layer and the attribute that cannot be copied, or "" if each one can be copied alone."""
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
