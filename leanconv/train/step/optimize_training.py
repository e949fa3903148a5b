"""`optimize_training`: measure every mode of a training step on this device, and return the fastest that is right."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.measure import label
from leanconv.measure.state import first_shape
from leanconv.progress import Progress
from leanconv.running import Inputs, cloned, has_lazy, put_back
from leanconv.train.step.choices import StepChoices
from leanconv.train.step.modes import Forward, Handle
from leanconv.train.step.race import OnPart, race
from leanconv.train.step.trial import Trial, trained

BUDGET_S = 90.0


class FastTraining:
    """A model's forward pass in the fastest mode of its training step. Call it in the model's place in the loop.

    Everything else stays with the model: parameters, `state_dict`, evaluation, `train()` and `eval()`.

    Attributes:
        model: the user's, in whose parameters gradients arrive.
        choices: the table of what was tried and chosen.
        forward: what a call runs.
    """

    def __init__(self, forward: Forward, handles: list[Handle], choices: StepChoices) -> None:
        self.model, self.choices = forward.model, choices
        self.forward, self._handles = forward, handles

    @property
    def mode(self) -> str:
        """The mode's name, "eager" if nothing is faster than the model as it is."""
        return self.forward.mode.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def remove(self) -> None:
        """Take back what the mode changed in the model (the layout of its parameters); their numbers stay."""
        while self._handles:
            self._handles.pop().remove()

    def __repr__(self) -> str:
        return f"FastTraining({type(self.model).__name__}, mode={self.mode!r})"


def optimize_training(
    model: nn.Module,
    inputs: Inputs,
    loss: Callable[[Any], Tensor],
    *,
    dtype: torch.dtype | None = None,
    budget_s: float = BUDGET_S,
) -> FastTraining:
    """Run a training step in every mode, and return the model's forward pass in the fastest with the same gradients.

    Args:
        model: in training mode, on the device it will be trained on.
        inputs: one batch as in training: a tensor, a tuple of arguments or a dict of named ones.
        loss: from the model's results to the loss of this batch, a tensor of one number.
        dtype: torch.bfloat16 allows autocast to it. Left out, every mode computes in the model's own type: a step in
            bfloat16 has other numbers than one in float32, by far more than rounding.
        budget_s: seconds. Modes that no longer fit are left out; the table says so.
    Returns: a function with the model's call signature; `.choices` is the table, `.mode` the winner's name.
    Raises: BadInput for a model in eval mode or compiled already, one without trainable parameters, or a step that
        does not run, or whose loss or gradient is not finite.

    Modes: the model as given, channels_last, "kernels" (this project's own on a CPU for depthwise convolutions, 1×1
    ones of few channels, gated sums, and norms with their activation), torch.compile, with `dtype` autocast, and their
    combinations. A compiled mode runs batches of another size uncompiled. A mode that fails is a row of the table.
    Right: the loss differs by at most 1e-5 of its size, each parameter's gradient by at most 1e-3 of its norm; in
    bfloat16 by 1e-2 and .5. Where rounding alone moves them further, five times that far is allowed; it is found by
    moving inputs and parameters by a few roundings. In bfloat16 it is twice as far as one rounding moves them, and at
    most a quarter of the whole gradient. A step that computes in bfloat16 as given has bfloat16's rule.
    Faster: all modes are timed in turns; a mode wins if it is faster than the given one beyond noise.

    Afterwards parameters, gradients, buffers (BatchNorm's statistics) and random generators are as before. A mode with
    channels_last stores the parameters so: create the optimizer after this call.
    """
    with Progress("training step", 1) as bar:

        def on_part(what: str, share: float) -> None:
            bar.show(what)
            bar.part(share)

        return choose(model, inputs, loss, dtype=dtype, budget_s=budget_s, on_part=on_part)


def choose(
    model: nn.Module,
    inputs: Inputs,
    loss: Callable[[Any], Tensor],
    *,
    dtype: torch.dtype | None,
    budget_s: float,
    on_part: OnPart,
    exactly: Callable[[], AbstractContextManager[object]] | None = None,
) -> FastTraining:
    """`optimize_training` without its bar; `on_part` gets what is done now, and the share of the budget spent.

    exactly: the model computes in `dtype` by itself, except in this context; all modes do then.
    """
    plain = trained(model)
    if has_lazy(plain):
        raise BadInput("the model has lazy layers that know no sizes yet: call it once before optimize_training")
    if dtype not in (None, torch.bfloat16):
        raise BadInput(f"dtype={dtype!r}: torch.bfloat16, or None for the model's own type")
    if not budget_s > 0:
        raise BadInput(f"budget_s={budget_s}: must be more than 0 seconds")
    start = time.perf_counter()
    batch = cloned(inputs)
    with put_back(plain):
        trial = Trial(plain, batch, loss, exactly)
        left = budget_s - (time.perf_counter() - start)
        rows, forward = race(trial, left, bfloat16=dtype is not None, only=exactly is not None, on_part=on_part)
    where = label(trial.parameters[0].device, dtype=trial.parameters[0].dtype, shape=first_shape(batch))
    choices = StepChoices(tuple(rows), where, time.perf_counter() - start, trial.random)
    if model is not plain:  # its wrapper gathers the gradients of several processes
        forward = Forward(model, forward.mode, (trial.args, trial.kwargs))
    return FastTraining(forward, forward.change_(), choices)
