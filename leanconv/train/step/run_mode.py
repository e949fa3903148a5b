"""The mode of a run's steps: decided once, by the recipe or by a race on the first batch, and kept on resuming."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.measure.timing.latency import once_ms
from leanconv.running import put_back
from leanconv.train.processes import Processes
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe
from leanconv.train.state import State
from leanconv.train.step.modes import (
    COMPILE,
    EAGER,
    KERNELS,
    RECOMPUTE,
    Forward,
    Mode,
    uncompiled,
    why_not_compile,
    why_not_kernels,
)
from leanconv.train.step.optimize_training import BUDGET_S, FastTraining, choose
from leanconv.train.step.race import OnPart, compile_s

# A race may take this share of the run's time. A run of fewer steps is not raced: the share is then 25 steps. They
# suffice to check two modes and to time them in turns.
SHARE, FEW_STEPS = 0.05, 500


def decided(recipe: Recipe, state: State, left: int) -> str:
    """The mode that needs no race: the recipe's, the resumed run's, that of a run of few steps; "" if none does.

    `left`: the steps that are still to be done.
    """
    if recipe.mode != "auto":
        return Mode.parse(recipe.mode).name
    if recipe.compile:
        return COMPILE
    if state.mode:
        return state.mode
    return EAGER if state.step or left < FEW_STEPS else ""  # a run that has begun without a race goes on so


def run_forward(
    recipe: Recipe,
    state: State,
    model: nn.Module,
    left: int,
    first_batch: Callable[[], tuple[Tensor, Callable[[Any], Tensor]]],
    processes: Processes,
    report: Reporter,
    on_part: OnPart,
) -> Forward:
    """The forward pass in the run's mode, which the state then holds.

    Raises: BadInput for a mode with torch.compile, or with kernels, where that cannot run.

    Args:
        model: as accelerate prepared it.
        left: the steps that are still to be done.
        first_batch: gives its images, and the loss of the model's results for them.
        on_part: gets what is tried now, and the share of the race that is done.
    """
    name = decided(recipe, state, left)
    if not name:
        fast = _race(recipe, model, left, first_batch, report, on_part) if processes.main else None
        name = processes.word(fast.mode if fast else EAGER)
        report.racing(name, 1.0)
        if fast is not None and processes.count == 1:
            state.mode = name
            return fast.forward
    state.mode, mode = name, Mode.parse(name)
    for word, why_not in ((COMPILE, why_not_compile), (KERNELS, why_not_kernels), (RECOMPUTE, why_not_kernels)):
        if word in mode and (reason := why_not(next(model.parameters()).device)):
            raise BadInput(f"mode={name} cannot run here: {reason}; or say mode=eager")
    forward = Forward(model, mode)
    forward.change_()
    return forward


def _race(
    recipe: Recipe,
    model: nn.Module,
    left: int,
    first_batch: Callable[[], tuple[Tensor, Callable[[Any], Tensor]]],
    report: Reporter,
    on_part: OnPart,
) -> FastTraining | None:
    """The fastest mode; None if the run is too short for another one to be tried."""
    images, loss = first_batch()
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    plain.train()
    half = torch.bfloat16 if recipe.amp in ("auto", "bf16") else None
    exactly = functools.partial(_without_autocast, plain) if recipe.amp == "bf16" else None
    parameters = [p for p in plain.parameters() if p.requires_grad]

    def step() -> object:
        return torch.autograd.grad(loss(plain(images)), parameters, allow_unused=True)

    with put_back(plain):
        step()
        budget_s = min(BUDGET_S, SHARE * left * once_ms(step) / 1e3)
    if len(uncompiled(plain, bfloat16=recipe.amp == "auto")) == 1 and budget_s < compile_s(plain):
        return None
    try:
        fast = choose(plain, images, loss, dtype=half, budget_s=budget_s, on_part=on_part, exactly=exactly)
    except BadInput as error:
        report.say(f"note   modes of the step were not compared: {error}")
        return None
    report.say(f"{fast.choices}\nmode   {fast.mode}; mode={fast.mode!r} in a recipe takes it without the race")
    return fast


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """The model without the mixed precision that accelerate put into its `forward`."""
    wrapped, model.forward = model.forward, getattr(model, "_original_forward", model.forward)
    try:
        yield
    finally:
        model.forward = wrapped
