"""One step of a user's training, run again and again: its loss and gradients, and how far another mode's are off.

The step is forward, loss and backward. The optimizer takes no part: it costs the same in every mode. Gradients are
returned, not added to the parameters.

Two modes agree if their losses, their gradients of all parameters together and those of each parameter do:

    |a - a'| <= max(tolerance·|a|, 5·noise of a)

|.| is the Euclidean norm. The noise is how far a value moves if each input and each parameter moves by a few roundings
of float32, as sums in another order do: a few ReLUs and poolings then decide otherwise. It is the most of three draws.
A parameter's is no less than the whole gradient's, each relative to its size. A parameter's gradient may also differ by
a hundredth of its tolerance of the whole gradient: rounding alone makes up some gradients, such as that of a bias
before BatchNorm.

In bfloat16 a step begins by rounding inputs and parameters. In a fresh network that alone can move a gradient further
than the tolerance: twice as far as a rounding of each moves it is allowed then. A mode that brings bfloat16 must agree
without it, too. A quarter of the whole gradient's norm (half where bfloat16 is asked for), and three quarters of a
parameter's, are never exceeded: a gradient that is zero differs by all of it. A step that computes in bfloat16 as given
is compared in the same way.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from leanconv.errors import BadInput, error_line
from leanconv.measure.state import bare
from leanconv.running import Inputs, as_call, tensors
from leanconv.train.step.modes import BFLOAT16, Forward, Mode, dropout_off


class Tolerance(NamedTuple):
    """The largest relative differences of the loss, the whole gradient, and the gradient of each parameter."""

    loss: float
    gradient: float
    parameter: float


# The gradients of two batches differ by a multiple of their size. In bfloat16 one rounding is 0.4 %. A gradient that is
# off by half of its norm still points the same way: their cosine is at least .87.
FLOAT32, IN_BFLOAT16 = Tolerance(1e-5, 1e-4, 1e-3), Tolerance(1e-2, 5e-2, 0.5)
SMALL = 1e-2
# Fresh U-Nets of base 8, random images and masks: rounding of images and weights alone moves .030 of the whole gradient
# of the dense one, .263 of SPLConv's. Rounding of every map as well moves 1.3 and 1.6 times as much, our kernels 1.3
# and 1.2 times, PyTorch's own layers 1.3 and 2.7 times. On wafer photographs the same rounding moves .003 and .070.
TIMES, MOST = 2.0, Tolerance(1e-2, 0.25, 0.75)
MOST_OF_ASKED = MOST._replace(gradient=0.5)
# Roundings that inputs and parameters move by, the most of so many draws, and how many times that is noise: a draw can
# tip a ReLU or none. SPConv's and SPLConv's U-Nets of base 8, eight batches of wafers and steel: our kernels' gradients
# are off by up to 13 times the noise of one draw, and 1.3 times that of three.
MOVED, DRAWS, NOISES = 16, 3, 5.0
ROUNDING = 2**-9  # a rounding to bfloat16, as a share
_SEED = 0


@dataclass(frozen=True)
class Seen:
    """The loss of a step, the gradient of each parameter (None where there is none), and whether dice were thrown."""

    loss: float
    gradients: list[Tensor | None]
    drew: bool


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
        exactly: bfloat16 is asked for: the model as given computes in it, except in the context that this gives.
    Raises: BadInput where the step does not run, or its loss or a gradient is not finite.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, loss: Callable[[Any], Tensor],
        exactly: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.loss, self.exactly = model, loss, exactly or nullcontext
        self.most = MOST_OF_ASKED if exactly else MOST
        self.args, self.kwargs = as_call(inputs)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list(named.values())
        if not named:
            raise BadInput("a training step needs trainable parameters; the model has none")
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self.given = Forward(model, Mode())
        try:
            with self.exactly(), _watched(model) as saw_half:
                self.expected = self.seen(self.given)
                self.half, self.random = bool(saw_half), self.expected.drew
                if self.random:
                    self.expected = self.seen(self.given, still=True)
        except Exception as error:
            raise BadInput(f"the training step does not run: {error_line(error, of_function=True)}") from error
        if not math.isfinite(self.expected.loss):
            raise BadInput(f"the loss is {self.expected.loss}: modes can only be compared by a finite one")
        for name, found in zip(self.names, self.expected.gradients, strict=True):
            if found is not None and not found.isfinite().all():
                raise BadInput(f"the gradient of {name} is not finite: modes can only be compared by finite ones")
        # A step in bfloat16 has its own rule, and moves of float32's size tip its roundings.
        self.noise = [0.0] * (len(named) + 1) if self.half else self._moves(MOVED * 2**-23, DRAWS)
        # Else in float32, by the first mode that needs it: its changes are in the model, but agree in float32 already.
        self._rounding = self._moves(ROUNDING) if self.half else None

    def __call__(self, forward: Forward) -> None:
        """One step, as it is timed."""
        self._step(forward, self.args, self.kwargs)

    def seen(self, forward: Forward, *, still: bool = False, call: Any = None) -> Seen:
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
            torch.manual_seed(_SEED)
            dice = _dice()
            with torch.enable_grad():
                loss, gradients = self._step(forward, args, kwargs)
            drew = not all(map(torch.equal, dice, _dice()))
        return Seen(float(loss.detach()), [None if g is None else _floats(g.detach()) for g in gradients], drew)

    def difference(self, forward: Forward) -> Difference:
        """How far a mode's loss and gradients are from the given one's."""
        seen = self.seen(forward, still=self.random)
        brought = BFLOAT16 in forward.mode
        if not (brought or self.half):
            return self._compared(seen, FLOAT32)
        found = self._compared(seen, IN_BFLOAT16)
        if found.agrees or (brought and not self._agrees_in_float32(forward)):
            return found
        self._rounding = self._rounding or self._moves(ROUNDING)
        return self._compared(seen, IN_BFLOAT16, [TIMES * each for each in self._rounding])

    def _agrees_in_float32(self, forward: Forward) -> bool:
        with self.exactly():
            return self.difference(forward.in_float32()).agrees

    def _compared(self, seen: Seen, allowed: Tolerance, rounding: list[float] | None = None) -> Difference:
        """`rounding`: by so much the loss and each gradient may differ in any case, up to `most` of them."""
        off = _distances(self.expected, seen)
        sizes = [abs(self.expected.loss), *map(_norm, self.expected.gradients)]
        whole, whole_off = math.hypot(*sizes[1:]), math.hypot(*off[1:])
        shares = (
            [allowed.loss, allowed.gradient, *len(self.names) * [allowed.parameter]],
            [self.most.loss, self.most.gradient, *len(self.names) * [self.most.parameter]],
        )
        rows = zip(
            ("loss", "gradient", *self.names),
            (off[0], whole_off, *off[1:]),
            (sizes[0], whole, *(max(size, SMALL * whole) for size in sizes[1:])),
            *shares,
            _spread(self.noise, sizes),
            _spread(rounding or [0.0] * len(sizes), sizes),
            strict=True,
        )
        over = [
            (_over(error, max(share * size, NOISES * noise, min(extra, most * size))), name)
            for name, error, size, share, most, noise, extra in rows
        ]
        return Difference(_over(off[0], sizes[0]), _over(whole_off, whole), *max(over))

    def _moves(self, share: float, draws: int = 1) -> list[float]:
        """How far the loss and each gradient move at most if inputs and parameters each move up or down by a share."""
        return [max(each) for each in zip(*(self._moved(share) for _ in range(draws)), strict=True)]

    def _moved(self, share: float) -> list[float]:
        def moved(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            up = torch.rand(tensor.shape, device=tensor.device) < 0.5
            return torch.where(up, tensor * (1 + share), tensor * (1 - share)).to(tensor.dtype)

        call = tree_map_only(Tensor, moved, (self.args, self.kwargs))
        before = [p.detach().clone() for p in self.parameters]
        try:
            with torch.no_grad():
                for p in self.parameters:
                    p.copy_(moved(p))
            with self.exactly():
                found = _distances(self.expected, self.seen(self.given, still=self.random, call=call))
            return [each if math.isfinite(each) else 0.0 for each in found]
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


def _distances(want: Seen, have: Seen) -> list[float]:
    """Of the loss and of each gradient; infinite where one is not finite, or is missing on one side."""
    found = [abs(want.loss - have.loss)]
    for a, b in zip(want.gradients, have.gradients, strict=True):
        found.append(math.inf if (a is None) != (b is None) else 0.0 if a is None or b is None else _norm(a - b))
    return [value if math.isfinite(value) else math.inf for value in found]


def _spread(moves: list[float], sizes: list[float]) -> list[float]:
    """Moves of the loss, the whole gradient, and each parameter's, which is no less than the whole's for its size."""
    whole, moved = math.hypot(*sizes[1:]), math.hypot(*moves[1:])
    each = [max(own, moved * size / whole) if whole else own for own, size in zip(moves[1:], sizes[1:], strict=True)]
    return [moves[0], moved, *each]


def _floats(gradient: Tensor) -> Tensor:
    """Complex numbers as pairs: half of one would be dropped, and a warning given."""
    return (torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient).float()


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient.double()))


def _over(error: float, room: float) -> float:
    return 0.0 if error == 0 else error / room if room > 0 else math.inf


def _dice() -> list[Tensor]:
    """The states of the generators of random numbers."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _devices())]


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[bool]]:
    """A list that is not empty once a layer with weights gave 16-bit numbers."""
    seen: list[bool] = []

    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        if any(True for _ in layer.parameters(recurse=False)):
            seen.extend(True for each in tensors(output) if each.dtype in (torch.bfloat16, torch.float16))

    handles = [layer.register_forward_hook(look) for layer in model.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


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
