"""Count and time each run's model: MACs, and latency in plain PyTorch and optimised."""

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from leanconv.engine import optimize
from leanconv.errors import LeanconvError
from leanconv.measure.counting.count import count_recorded
from leanconv.measure.counting.record import record
from leanconv.measure.device import label
from leanconv.measure.timing.latency import interleave
from leanconv.report.document import Report

Say = Callable[[str], object]


def count_and_time(
    report: Report, models: dict[int, nn.Module], device: str, budget_s: float, optimize_s: float, say: Say
) -> None:
    """Measure MACs, torchstat's columns and latency of each model on one image of the training size."""
    sizes = Counter(size for run in report.runs if type(size := run.recipe.get("size")) is int and 0 < size <= 4096)
    size = sizes.most_common(1)[0][0] if sizes else 256
    if len(sizes) > 1:
        report.remarks.append(f"Training sizes differ ({', '.join(map(str, sorted(sizes)))}): all are timed at {size}.")
    if any(run.task == "segment" for run in report.runs):
        size = -(-size // 32) * 32  # a multiple of every U-Net's stride
    shape = (1, 3, size, size)
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    timed = {}
    for index, model in models.items():
        run = report.runs[index]
        say(f"count {run.name}")
        try:
            run.costs = _costs(model, inputs)
            _call(model, inputs)()
            timed[index] = model
        except (LeanconvError, RuntimeError) as error:
            run.remark(f"does not run on {'×'.join(map(str, shape))}, so it was not timed: {without_type(error)}")
    if not timed:
        return
    report.shape = shape
    if budget_s > 0:
        fast = _optimised(report, timed, inputs, optimize_s, say) if optimize_s > 0 else {}
        _time(report, timed, fast, inputs, budget_s, say)


def _optimised(
    report: Report, models: dict[int, nn.Module], inputs: torch.Tensor, seconds: float, say: Say
) -> dict[int, nn.Module]:
    """Optimize each model on this device."""
    found: dict[int, nn.Module] = {}
    for index, model in models.items():
        run = report.runs[index]
        say(f"optimise {run.name}, {seconds:g} s at most")
        try:
            optimised = optimize(model, inputs, budget_s=seconds)
        except LeanconvError as error:
            run.remark(f"could not be optimised: {without_type(error)}")
            continue
        found[index] = report.optimised[run.name] = optimised
        run.engine = optimised.engine
    return found


def _time(
    report: Report,
    models: dict[int, nn.Module],
    fast: dict[int, nn.Module],
    inputs: torch.Tensor,
    budget_s: float,
    say: Say,
) -> None:
    """Time all models in turns, in plain PyTorch and optimised."""
    calls = {
        f"{index} {kind}": _call(model, inputs)
        for kind, held in (("plain", models), ("fast", fast))
        for index, model in held.items()
    }
    say(f"time {len(calls)} model{'s' * (len(calls) > 1)}, {budget_s:g} s")
    for key, timing in interleave(calls, budget_s=budget_s).items():
        index, kind = key.split()
        run = report.runs[int(index)]
        if kind == "fast":
            run.fast_ms, run.fast_iqr_ms = timing.median_ms, timing.iqr_ms
        else:
            run.ms, run.p95_ms, run.iqr_ms = timing.median_ms, timing.p95_ms, timing.iqr_ms
            run.rounds = timing.rounds
    how = "plain eager PyTorch" + ", and optimised" * bool(fast)
    report.measured = f"{label(inputs.device, dtype=inputs.dtype, shape=inputs.shape)}, {how}"


def _costs(model: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    with warnings.catch_warnings():
        # torchstat's convention ignores layers it has no rule for. `leanconv profile` lists them.
        warnings.simplefilter("ignore")
        recording = record(model, inputs)
        macs, published = count_recorded(recording, "macs"), count_recorded(recording, "torchstat")
    return {
        "params": macs.params,
        "macs": macs.flops,
        "torchstat_flops": published.flops,
        "torchstat_madd": published.madd or 0,
    }


def _call(model: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(inputs)

    return run


def without_type(error: Exception) -> str:
    """Return the first line of an error's message. Only an error without a message shows its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
