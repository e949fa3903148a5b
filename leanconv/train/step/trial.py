"""One step of a user's training, run again and again: its loss and gradients, and how far another mode's are off.

The step is forward, loss and backward. The optimizer takes no part: it costs the same in every mode. Gradients are
returned, not added to the parameters.

Two modes agree if their losses, their gradients of all parameters together and those of each parameter do:

    |a - a'| <= max(tolerance·|a|, 10·noise of a)

|.| is the Euclidean norm. The noise is how far a value moves if each input and each parameter moves by a few roundings
of float32, as sums in another order do: a few ReLUs and poolings then decide otherwise. A parameter's gradient may also
differ by a hundredth of its tolerance of the whole gradient: rounding alone makes up some gradients, such as that of a
bias before BatchNorm.

A mode in bfloat16 has rounding of its own: that of inputs and parameters to bfloat16, the first thing that autocast
does. In a fresh network it can move a gradient further than the tolerance, with all the rest in float32. Twice that far
is allowed then if the same mode without bfloat16 agrees; of the whole gradient never more than half of its norm.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from leanconv.errors import BadInput, error_line
from leanconv.measure.state import bare
from leanconv.running import Inputs, as_call
from leanconv.train.step.modes import BFLOAT16, Forward, Mode, dropout_off


class Tolerance(NamedTuple):
    """The largest relative differences of the loss, the whole gradient, and the gradient of each parameter."""

    loss: float
    gradient: float
    parameter: float


# The gradients of two batches differ by a multiple of their size. In bfloat16 one rounding is 0.4 %. A gradient that is
# off by half of its norm still points the same way: their cosine is at least .87.
FLOAT32, IN_BFLOAT16 = Tolerance(1e-5, 1e-4, 1e-3), Tolerance(1e-2, 5e-2, 0.5)
ROUNDINGS, SMALL = 10.0, 1e-2
# Steps in bfloat16, fresh U-Net of base 8, random images and masks: of the whole gradient, rounding of images and weights
# alone moves .030 with dense layers and .263 with SPLConv. Rounding of every map as well moves 1.3 and 1.6 times as much,
# our kernels 1.3 and 1.2 times, PyTorch's own layers 1.3 and 2.7 times.
TIMES, MOST = 2.0, 0.5
# Roundings that inputs and parameters move by. channels_last moves gradients of a U-Net of base 8 (128 px, fresh
# weights) by 1e-3 of the whole, and single ones by more than 1e-2. Ten times this noise covers it twice; with four
# roundings it would be short by a factor of four for HetConv, and of two for SPConv.
MOVED = 16
_SEED = 0


@dataclass(frozen=True)
class Seen:
    """The loss of a step, and the gradient of each parameter (None where there is none)."""

    loss: float
    gradients: list[Tensor | None]


@dataclass(frozen=True)
class Difference:
    """How far a mode's step is from the given one's.

    Attributes:
        loss: relative to the loss.
        gradient: of all parameters together, relative to the norm of the whole gradient.
        worst: the largest error over what is allowed for it: above 1 the two do not agree.
        name: of what has it: "loss", "gradient", or a parameter.
    """

    loss: float
    gradient: float
    worst: float
    name: str

    @property
    def agrees(self) -> bool:
        return self.worst <= 1


class Trial:
    """A model's step on one batch.

    Args:
        model: in training mode, protected from changes by the caller.
        inputs: the arguments of its forward pass.
        loss: from its results to the loss, a tensor of one number.
    Raises: BadInput where the step does not run, or its loss is not finite.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, loss: Callable[[Any], Tensor]) -> None:
        self.model, self.loss = model, loss
        self.args, self.kwargs = as_call(inputs)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list(named.values())
        if not named:
            raise BadInput("a training step needs trainable parameters; the model has none")
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self.given = Forward(model, Mode())
        try:
            self.expected, again = self.seen(self.given), self.seen(self.given)
            self.random = not _same(self.seen(self.given, seed=_SEED + 1), again)
            if self.random:
                self.expected = self.seen(self.given, still=True)
        except Exception as error:
            raise BadInput(f"the training step does not run: {error_line(error, of_function=True)}") from error
        if not math.isfinite(self.expected.loss):
            raise BadInput(f"the loss is {self.expected.loss}: modes can only be compared by a finite one")
        self.noise = self._moves(_nudged)

    def __call__(self, forward: Forward) -> None:
        """One step, as it is timed."""
        self._step(forward, self.args, self.kwargs)

    def seen(self, forward: Forward, *, seed: int = _SEED, still: bool = False, call: Any = None) -> Seen:
        """Loss and gradients of a step that begins with the same buffers and random numbers each time.

        Args:
            still: without dropout.
            call: other arguments than the given ones.
        """
        args, kwargs = call or (self.args, self.kwargs)
        quiet: AbstractContextManager[None] = dropout_off(self.model) if still else nullcontext()
        with torch.random.fork_rng(devices=_devices()), quiet, torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
            torch.manual_seed(seed)
            with torch.enable_grad():
                loss, gradients = self._step(forward, args, kwargs)
        return Seen(float(loss.detach()), [None if g is None else g.detach().float() for g in gradients])

    def difference(self, forward: Forward) -> Difference:
        """How far a mode's loss and gradients are from the given one's."""
        seen = self.seen(forward, still=self.random)
        if BFLOAT16 not in forward.mode:
            return self._compared(seen, FLOAT32)
        found = self._compared(seen, IN_BFLOAT16)
        if found.agrees or not self.difference(forward.in_float32()).agrees:
            return found
        return self._compared(seen, IN_BFLOAT16, self._moves(_rounded))

    def _compared(self, seen: Seen, allowed: Tolerance, rounding: list[float] | None = None) -> Difference:
        """`rounding`: how far that to bfloat16 moves the loss and each gradient, where it counts."""
        off, noise = _distances(self.expected, seen), self.noise
        sizes = [abs(self.expected.loss), *map(_norm, self.expected.gradients)]
        whole, whole_off = math.hypot(*sizes[1:]), math.hypot(*off[1:])
        more = [TIMES * each for each in rounding[1:]] if rounding else [0.0] * len(self.names)
        rows = [
            ("loss", off[0], allowed.loss * sizes[0], noise[0], 0.0),
            ("gradient", whole_off, allowed.gradient * whole, math.hypot(*noise[1:]), min(math.hypot(*more), MOST * whole)),
        ]
        for name, error, size, own, extra in zip(self.names, off[1:], sizes[1:], noise[1:], more, strict=True):
            rows.append((name, error, allowed.parameter * max(size, SMALL * whole), own, extra))
        over = [(_over(error, max(room, ROUNDINGS * own, extra)), name) for name, error, room, own, extra in rows]
        return Difference(_over(off[0], sizes[0]), _over(whole_off, whole), *max(over))

    def _moves(self, moved: Callable[[Tensor], Tensor]) -> list[float]:
        """How far the loss and each gradient move if inputs and parameters do."""

        def given(tensor: Tensor) -> Tensor:
            return moved(tensor) if tensor.is_floating_point() else tensor

        call = tree_map_only(Tensor, given, (self.args, self.kwargs))
        before = [p.detach().clone() for p in self.parameters]
        try:
            with torch.no_grad():
                for p in self.parameters:
                    p.copy_(given(p))
            return _distances(self.expected, self.seen(self.given, still=self.random, call=call))
        finally:
            with torch.no_grad():
                for p, own in zip(self.parameters, before, strict=True):
                    p.copy_(own)

    def _step(self, forward: Forward, args: Any, kwargs: Any) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = self.loss(forward(*args, **kwargs))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of size {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise BadInput(f"loss gives {what}: it must give one number, with its gradient")
        return loss, torch.autograd.grad(loss, self.parameters, allow_unused=True)


def _nudged(tensor: Tensor) -> Tensor:
    """Each number a few roundings of float32 up or down."""
    up = torch.rand(tensor.shape, device=tensor.device) < 0.5
    return torch.where(up, tensor * (1 + MOVED * 2**-23), tensor * (1 - MOVED * 2**-23)).to(tensor.dtype)


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor.dtype)


def _distances(want: Seen, have: Seen) -> list[float]:
    """Of the loss and of each gradient; infinite where one is not finite, or is missing on one side."""
    found = [abs(want.loss - have.loss)]
    for a, b in zip(want.gradients, have.gradients, strict=True):
        found.append(math.inf if (a is None) != (b is None) else 0.0 if a is None or b is None else _norm(a - b))
    return [value if math.isfinite(value) else math.inf for value in found]


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient.double()))


def _over(error: float, room: float) -> float:
    return 0.0 if error == 0 else error / room if room > 0 else math.inf


def _same(a: Seen, b: Seen) -> bool:
    return max(_distances(a, b)) == 0


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def trained(model: nn.Module) -> nn.Module:
    """The module inside a model's wrappers. Raises BadInput unless it is in training mode and not compiled."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"a training step is that of a torch.nn.Module, got {type(model).__name__}")
    if "_orig_mod" in model._modules:
        raise BadInput("the model is compiled already: give the plain one, torch.compile is among the modes")
    if not model.training:
        raise BadInput("the model is in eval mode; call model.train() first")
    return bare(model)
