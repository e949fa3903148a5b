"""The dense network's fastest form against the lean one's, in turns in one process."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.engine import optimize
from leanconv.engine.candidates import EAGER
from leanconv.measure import label
from leanconv.measure.timing.paired import Turns

# Rounds and seconds of the comparison; calls below PRIMED_S are timed in warm caches, as `optimize` times them.
FEWEST, MOST, SECONDS, PRIMED_S = 15, 400, 6.0, 0.03
SIGMAS = 2.0  # of the interval around the ratio: about 95 %


def race(
    dense: nn.Module,
    lean: nn.Module,
    inputs: Tensor,
    *,
    budget_s: float,
    engines: dict[str, str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare each network's fastest form as `optimize` does, then time both in turns.

    Args:
        dense, lean: in eval mode, on the CPU.
        inputs: `N C H W`.
        budget_s: seconds for the engines of each network.
        engines: "dense" and "lean" -> the engine to take; None tries all of this machine.
    Returns: engine, median and spread of each; `ratio`, dense time over lean time, with the bounds of its interval.
    """
    forms: dict[str, nn.Module] = {}
    names: dict[str, str] = {}
    for key, network in (("dense", dense), ("lean", lean)):
        asked = engines[key] if engines else None
        forms[key], names[key] = _fastest(network, inputs, asked, budget_s, progress)
    turns = _timed(forms, inputs)
    ratio = turns.ratio("dense", "lean", sigmas=SIGMAS)
    found: dict[str, Any] = {key: {"engine": names[key], **turns.timing(key).to_dict()} for key in ("dense", "lean")}
    found["ratio"] = {"low": ratio.low, "middle": ratio.middle, "high": ratio.high}
    return found | {"where": label("cpu", dtype=inputs.dtype, shape=inputs.shape), "threads": torch.get_num_threads()}


def _fastest(
    network: nn.Module, inputs: Tensor, engine: str | None, budget_s: float, progress: bool
) -> tuple[nn.Module, str]:
    """The fastest form and its engine's name."""
    if engine == EAGER:
        return network, EAGER
    fast = optimize(network, inputs, engines=None if engine is None else [engine], budget_s=budget_s, progress=progress)
    return fast, fast.choices.winner.label


@torch.no_grad()
def _timed(forms: dict[str, nn.Module], inputs: Tensor) -> Turns:
    def calling(form: nn.Module) -> Callable[[], object]:
        return lambda: form(inputs)

    calls = {key: calling(form) for key, form in forms.items()}
    looks: Sequence[float] = [_once(call) for _ in range(2) for call in calls.values()]
    turns = Turns(calls, primed=min(looks) < PRIMED_S)
    start = time.perf_counter()
    for done in range(1, MOST + 1):
        turns.round()
        if done >= FEWEST and time.perf_counter() - start > SECONDS:
            break
    return turns


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
