"""Count and time each run's model at the size of the user's images: MACs, latency in plain PyTorch and optimised."""

import contextlib
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from leanconv.engine import optimize
from leanconv.errors import LeanconvError
from leanconv.measure.counting.count import count_recorded
from leanconv.measure.counting.record import record
from leanconv.measure.device import label
from leanconv.measure.timing.latency import CLOCK_WORDS, Timing, interleave
from leanconv.report.chance import spread, times_of
from leanconv.report.document import Report
from leanconv.report.words import percent
from leanconv.train.inference.tiles import layout

Say = Callable[[str], object]

# The rounds of timing come in blocks; how far their medians lie apart tells whether the numbers can be repeated.
BLOCKS = 5
# Two reports of the same runs agree within this share on a quiet machine. Beyond it the report says so, and why.
REPEATABLE = 0.15
# The most images whose size is read.
SIZES = 64


def image_size(report: Report, samples: Any | None) -> tuple[int, int]:
    """The most common height and width of the images to come; else the training size, else 256.

    `samples`: images with masks, or None. A classifier sees squares of its training size, whatever the images are.
    """
    if samples is not None and len(samples):
        step = -(-len(samples) // SIZES)
        shapes = [tuple(samples[index].image.shape[-2:]) for index in range(0, len(samples), step)]
        sizes = Counter(shapes)
        height, width = sizes.most_common(1)[0][0]
        if len(sizes) > 1:
            report.remarks.append(
                f"The images have {len(sizes)} sizes. Speed is for {width}×{height} px, the most common."
            )
        return height, width
    trained = Counter(size for run in report.runs if type(size := run.recipe.get("size")) is int and 0 < size <= 4096)
    side = trained.most_common(1)[0][0] if trained else 256
    if len(trained) > 1:
        report.remarks.append(
            f"Training sizes differ ({', '.join(map(str, sorted(trained)))}): all are timed at {side}."
        )
    return side, side


def count_and_time(
    report: Report, models: dict[int, nn.Module], device: str, budget_s: float, optimize_s: float, say: Say
) -> None:
    """Measure MACs, torchstat's columns and latency of each model on one image of the report's `image_size`.

    A model that segments takes it as `leanconv predict` hands it over: padded, and in tiles if it is large.
    """
    height, width = report.image_size
    if any(run.task == "segment" for run in report.runs):
        unit = math.lcm(*(int(getattr(model, "size_multiple", 32)) for model in models.values()))
        height, width, report.tiles = layout(height, width, unit)
    shape = (1, 3, height, width)
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    timed = {}
    for index, model in models.items():
        run = report.runs[index]
        say(f"count {run.name}")
        try:
            run.costs = {
                key: value * (1 if key == "params" else report.tiles) for key, value in _costs(model, inputs).items()
            }
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
    """Time all models in turns, in plain PyTorch and optimised, in blocks of rounds."""
    calls = {
        f"{index} {kind}": _call(model, inputs)
        for kind, held in (("plain", models), ("fast", fast))
        for index, model in held.items()
    }
    say(f"time {len(calls)} model{'s' * (len(calls) > 1)}, {budget_s:g} s")
    # With one thread, computing time leaves out the moments in which other programs had the processor.
    clock = "process" if inputs.device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    with _others() as others:
        blocks = [
            interleave(
                calls,
                budget_s=budget_s / BLOCKS,
                warmup=2 if block == 0 else 1,
                min_rounds=1,
                max_rounds=40,
                clock=clock,
            )
            for block in range(BLOCKS)
        ]
    report.others = others[0]
    for key in calls:
        index, kind = key.split()
        run, timings = report.runs[int(index)], [block[key] for block in blocks]
        medians, iqr_ms = _merged(timings, report.tiles)
        if kind == "fast":
            run.fast_ms, run.fast_iqr_ms, run.fast_blocks_ms = statistics.median(medians), iqr_ms, medians
        else:
            run.ms, run.iqr_ms, run.blocks_ms = statistics.median(medians), iqr_ms, medians
            run.p95_ms = statistics.median(each.p95_ms for each in timings) * report.tiles
            run.rounds = sum(each.rounds for each in timings)
    how = "plain eager PyTorch" + ", and optimised" * bool(fast)
    report.measured = f"{label(inputs.device, dtype=inputs.dtype, shape=inputs.shape)}, {CLOCK_WORDS[clock]}, {how}"
    if remark := repeatability(report):
        report.remarks.append(remark)


def _merged(timings: Sequence[Timing], tiles: int) -> tuple[tuple[float, ...], float]:
    """Block medians and interquartile range in ms for an image of `tiles` tiles, within blocks or between them."""
    medians = tuple(tiles * each.median_ms for each in timings)
    between = Timing.of(list(medians)).iqr_ms
    return medians, max(between, tiles * statistics.median(each.iqr_ms for each in timings))


def repeatability(report: Report) -> str:
    """Say whether another report would give other speeds, with the spread measured here and its reason; "" if not."""
    forms = {"fps": "in plain PyTorch", "fast_fps": "optimised"}
    spreads = {
        f"{run.name} ({form})": spread(times_of(run, key)[2])
        for run in report.runs
        if run.ms > 0
        for key, form in forms.items()
    }
    name = max(spreads, key=lambda each: spreads[each], default="")
    busy = math.isfinite(report.others) and report.others > REPEATABLE
    why = f"Other programs used {percent(report.others)} of the processors meanwhile. " if busy else ""
    if name and spreads[name] > REPEATABLE:
        why = why or "The reason is not known; a processor that changes its clock rate does this. "
        return (
            f"Speed cannot be repeated within {percent(REPEATABLE)}: the {BLOCKS} blocks of timing of {name} differ by "
            f"{percent(spreads[name])}. {why}Repeat it on a quiet machine before you quote a number."
        )
    return f"{why}Another report may give other speeds: repeat it on a quiet machine before you quote a number." * busy


@contextlib.contextmanager
def _others() -> Iterator[list[float]]:
    """Measure the share of the processors' time that other programs take inside; NaN where it cannot be read."""
    share = [math.nan]
    try:
        import psutil  # comes with accelerate
    except ImportError:
        yield share
        return
    before, own = psutil.cpu_times(), time.process_time()
    yield share
    after, own = psutil.cpu_times(), time.process_time() - own
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    # Guests' time is part of the user's.
    whole = sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))
    idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
    if whole > 0:
        share[0] = min(1.0, max(0.0, (whole - idle - own) / whole))


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
