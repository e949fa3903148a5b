"""Whether an operator's kernel may be called at once, goes through PyTorch's dispatcher, or may not be called."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu import training as cpu


def takes(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether kernels take a map with these weights: else PyTorch computes the layer, or says what is wrong."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in cpu.TYPES
        and all(w is None or (w.device == x.device and w.dtype in (x.dtype, torch.float32)) for w in weights)
        and not recorded()
    )


def takes_layer(x: Tensor, channels: int, *weights: Tensor | None) -> bool:
    """The same, of a map of so many channels, in the type that autocast gives it."""
    return takes(x, *weights) and x.shape[1] == channels and type_of(x) in cpu.TYPES


def type_of(x: Tensor) -> torch.dtype:
    """The type in which an operator computes a map: autocast's, where that is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def wrong_on_tiles(columns: int, stride: Sequence[int]) -> bool:
    """Whether PyTorch 2.14.1's bfloat16 convolution is wrong on matrix tiles: a horizontal stride leaves one column."""
    return columns == 1 and stride[1] > 1


def through_dispatcher(x: Tensor) -> bool:
    """Whether somebody watches PyTorch's calls: a compiler, a mode, a transform. Only then the operators are called.

    Their way through PyTorch's dispatcher takes as long as a small layer.
    """
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def recorded() -> bool:
    """Whether the calls become others that know no operators of ours.

    Those of a file (a trace, an export), and of `torch.func` and forward mode: an operator with a gradient has no rule
    for those, and would give zeros.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return torch.jit.is_tracing() or transformed or torch.autograd.forward_ad._current_level >= 0
