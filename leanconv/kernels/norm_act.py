"""BatchNorm, the addition of a residual and an activation in one kernel, while a model trains on the CPU's kernels.

`norm_act` takes the place of `act(norm(x) + residual)`; `rewritten` finds such places. What the kernel cannot take, and
modules with hooks, are called one after the other as before: a hook sees what its module makes.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.dispatched import recorded, through_dispatcher
from leanconv.ops import batch_norm_act as ops

# Numbers of a map below which PyTorch's own is not slower: forward and backward of 128 channels of 8x8 at batch 16
# (2^17 numbers) 1.38 ms against 1.27, of 2x2 at batch 128 (2^16) .77 against .91 (one core of an EPYC, AVX2).
_LEAST = 2**17
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_KINDS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"
}  # fmt: skip


def kind(act: Any) -> str | None:
    """The activation's name in `ops.batch_norm_act`; None for one that it has not."""
    if isinstance(act, nn.Module):
        return _KINDS.get(type(act))
    if act is F.relu or act is torch.relu:
        return "relu"
    return "relu6" if act is F.relu6 else "silu" if act is F.silu else "hardswish" if act is F.hardswish else None


def watched(*modules: Any) -> bool:
    """Whether a hook looks at one of these modules, or somebody changed its forward. It must do what it did."""
    return any(
        isinstance(each, nn.Module) and ("forward" in each.__dict__ or any(getattr(each, name) for name in _HOOKS))
        for each in modules
    )


def norm_act(act: Any, chain: tuple[Any, ...], x: Any, plus: Any = None, in_place: bool = False) -> Any:
    """`act(chain(x) + plus)`.

    Args:
        act: a module or a function.
        chain: modules, the outermost first: a BatchNorm among `nn.Identity`s, or the kernel is not called.
        plus: None: nothing is added.
        in_place: of the addition, where no kernel does it.
    """
    norms = [each for each in chain if type(each) is nn.BatchNorm2d]
    name = kind(act)
    plain = len(norms) == 1 and all(type(each) in (nn.BatchNorm2d, nn.Identity) for each in chain)
    if plain and name is not None and not watched(act, *chain) and _takes(norms[0], x, plus, name):
        return _in_kernel(norms[0], x, plus, name)
    for each in reversed(chain):
        x = each(x)
    if plus is not None:
        x = operator.iadd(x, plus) if in_place else x + plus
    return act(x)


def _takes(norm: nn.BatchNorm2d, x: Any, plus: Any, act: str) -> bool:
    """Whether the kernel computes it: in training, of a large map of the CPU with its channels innermost."""
    return (
        norm.training
        and isinstance(x, Tensor)
        and x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in cpu.TYPES
        and x.shape[1] == norm.num_features
        and x.stride(1) == 1
        and x.numel() >= _LEAST
        and x.shape[1] * 2 <= x.numel()
        and all(p is None or (p.dtype == torch.float32 and p.device == x.device) for p in (norm.weight, norm.bias))
        and (plus is None or (act in ops.OF_RESIDUALS and _alike(x, plus)))
        and (torch.compiler.is_compiling() or _unseen())
    )


def _unseen() -> bool:
    """Whether nobody looks at every module's call, traces it, or transforms it by a rule that the operator lacks."""
    return not _has_any_global_hook() and not recorded()


def _alike(x: Tensor, plus: Any) -> bool:
    return isinstance(plus, Tensor) and plus.shape == x.shape and plus.dtype == x.dtype and plus.device == x.device


def _in_kernel(norm: nn.BatchNorm2d, x: Tensor, plus: Tensor | None, act: str) -> Tensor:
    run = ops.batch_norm_act if through_dispatcher(x) else _BatchNormAct.apply
    y, statistics = run(x, norm.weight, norm.bias, plus, act, norm.eps)
    track(norm, statistics.detach(), x.numel() // x.shape[1])
    return y  # type: ignore[no-any-return]


@torch.no_grad()
def track(norm: nn.BatchNorm2d, statistics: Tensor, count: int) -> None:
    """Move the running statistics, as `nn.BatchNorm2d` does, by mean and biased variance of `count` numbers, `2 C`."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    share: Any = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:  # the average of all batches
            share = 1.0 / norm.num_batches_tracked.to(statistics.dtype)
    if share is None:
        return
    mean, variance = statistics.unbind()
    for kept, new in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
        # Not counted as a change, as in PyTorch's own: that norm, called elsewhere in the step, has kept them.
        own = kept if torch.compiler.is_compiling() else kept.data
        own.lerp_(new.to(kept.dtype), share)


class _BatchNormAct(torch.autograd.Function):
    """`ops.batch_norm_act`; a gradient that is itself to have one goes through the reference."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = cpu.normalized(*inputs)
        ops.save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        return ops.backward(
            ctx, grad, _, ops.batch_norm_act_gradient if through_dispatcher(grad) else cpu.normalized_gradient
        )
