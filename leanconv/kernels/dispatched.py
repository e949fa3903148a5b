"""Whether an operator's kernel may be called at once, goes through PyTorch's dispatcher, or may not be called."""

import torch
from torch import Tensor


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
