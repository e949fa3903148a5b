"""`optimize`: a model's fastest form on this device, found by measurement, and never slower than the model itself."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from leanconv.deploy.calls import Inputs, as_call
from leanconv.deploy.runtimes import first_line
from leanconv.engine.candidate import Candidate, Form
from leanconv.engine.candidates import GIVEN, chosen
from leanconv.engine.choices import Choice, Choices, faster
from leanconv.engine.optimized import PLAIN, Optimized
from leanconv.engine.race import Entry, clock_of, race
from leanconv.engine.weights import Weights
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput, LeanconvError, told
from leanconv.measure import label

# The share of the budget that is kept for timing.
TIMING_SHARE = 0.25
CLOCK_WORDS = {"wall": "wall time", "process": "computing time"}


def optimize(
    model: nn.Module,
    inputs: Inputs,
    *,
    dtype: torch.dtype | None = None,
    engines: Sequence[str] | None = None,
    budget_s: float = 90,
) -> Optimized:
    """Fold the model, try every engine of this machine on it, and return the fastest that computes the same.

    Args:
        model: in eval mode, on the device it will run on; it is not changed.
        inputs: a tensor, a tuple of arguments or a dict of named ones, as in use: shapes decide what is fastest.
        dtype: a type that engines may also compute in (torch.bfloat16); inputs and outputs keep theirs. Of a model in
            bfloat16 or float16 some engines are tried in float32 too, in any case.
        engines: of "eager" (as given, always tried), "folded", "channels_last", "fused", "openvino", "onnxruntime",
            "compile".
        budget_s: seconds; an engine whose preparation may not fit any more is left out and listed.
    Returns: a module that is called like the model, with the table `.choices`. Inference only (no gradients).
    Raises: BadInput in training mode, or where the model does not run on `inputs`; UnknownName for another engine.

    A form is chosen if it is right (its largest error, as a share of the output, is at most 1e-4 in float32 and 5e-2
    in bfloat16; up to ten times the model's own distance to float64 where that is more) and faster than the given model
    beyond noise, in turns with all others and once more with the best. Threads: `torch.get_num_threads()`.
    """
    candidates = chosen(engines)
    _check(model, dtype, budget_s)
    args, kwargs = _plain(*as_call(inputs))
    start = time.perf_counter()
    deadline = start + budget_s
    weights = Weights(model)
    bench = _bench(model, args, kwargs)
    variants = _variants(candidates, dtype, bench)
    with _Progress(1 + len(variants)) as progress:
        given = Entry(Choice(GIVEN, error=0.0), model, True, bench.forward_s)
        entries, rows = [given], [given.row]
        for candidate, kind in variants:
            progress.show(candidate.name)
            row, entry = _try(bench, candidate, kind, deadline - TIMING_SHARE * budget_s, budget_s)
            rows.append(row)
            entries += [entry] if entry else []
            progress.advance()
        progress.show("measuring")
        winner = race(bench, entries, deadline, progress.part)
    for entry in entries:
        if note := getattr(getattr(entry.form, "blocks", None), "note", ""):
            entry.row.note += f"; {note}"
    fallback = _fallback(bench, entries, given)
    shape = bench.tensors[0].shape if bench.tensors else None
    told = f"{label(bench.device, dtype=bench.dtype, shape=shape)}, {CLOCK_WORDS[clock_of(bench)]}"
    folds = len(bench.fold_report.done) if "_folding" in bench.__dict__ else 0
    blocks = next((found for e in [winner, *entries] if (found := getattr(e.form, "blocks", None)) is not None), None)
    choices = Choices(tuple(rows), told, folds, time.perf_counter() - start, blocks)
    weights.settle()
    again = partial(optimize, model, dtype=dtype, engines=(winner.row.engine,), budget_s=budget_s)
    return Optimized(
        model, choices, (args, kwargs), winner.form, any_shape=winner.any_shape, fallback=fallback, again=again,
        weights=weights,
    )  # fmt: skip


def _check(model: nn.Module, dtype: torch.dtype | None, budget_s: float) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"optimize takes a torch.nn.Module, got {type(model).__name__}")
    if getattr(model, "optimized_by_leanconv", False):
        raise BadInput("the model is optimised already; optimize(model.original, ...) starts again")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"its layer {training!r} is" if training else "it is"
        raise BadInput(f"optimize needs a model in eval mode, and {where} in training mode; call model.eval() first")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise BadInput("the model has lazy layers that know no sizes yet: call it once before optimize")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise BadInput(f"dtype={dtype!r}: must be a floating-point type, such as torch.bfloat16")
    if not budget_s > 0:
        raise BadInput(f"budget_s={budget_s}: must be more than 0 seconds")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise BadInput("optimize was called under torch.autocast; leave it, and say dtype=torch.bfloat16 instead")


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with tensors that are their numbers in memory and no more."""

    def plain(tensor: Tensor) -> Tensor:
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
            what = type(tensor).__name__ if type(tensor) not in PLAIN else str(tensor.layout)
            raise BadInput(f"an input is a tensor of the kind {what}; optimize takes plain, dense ones")
        return tensor.resolve_neg()

    made: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, plain, (args, kwargs))
    return made


def _bench(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Workbench:
    try:
        bench = Workbench(model, args, kwargs, torch.get_num_threads())
    except LeanconvError:
        raise
    except Exception as error:
        raise BadInput(f"the model does not run on these inputs: {told(error)}") from error
    if any(not tensor.numel() for tensor in bench.tensors):
        raise BadInput(f"an input is empty ({tuple(bench.tensors[0].shape)}): give at least one sample to measure on")
    return bench


def _variants(
    candidates: Sequence[Candidate], dtype: torch.dtype | None, bench: Workbench
) -> list[tuple[Candidate, torch.dtype | None]]:
    """Every engine in the model's own dtype, then in the other that the caller allows.

    Of a model in half precision some also in float32, which is the more exact and may be the faster.
    """
    dtypes = [None] if dtype in (None, bench.dtype) else [None, dtype]
    found = [(candidate, each) for each in dtypes for candidate in candidates]
    if bench.half and torch.float32 not in dtypes:
        found += [(candidate, torch.float32) for candidate in candidates if candidate.widens]
    return found


def _try(
    bench: Workbench, candidate: Candidate, dtype: torch.dtype | None, until: float, budget_s: float
) -> tuple[Choice, Entry | None]:
    """Prepare one candidate and hold it against the model. No reason to give up on it is an error of ours."""
    row = Choice(candidate.name, "" if dtype is None else str(dtype).removeprefix("torch."))
    row.note = bench.obstacle or candidate.why_not(bench, dtype) or ""
    start = time.perf_counter()
    if not row.note and (needs := candidate.seconds(bench)) > until - start:
        left = max(0.0, until - start)
        row.note = f"skipped: needs about {needs:.0f} s, {left:.0f} s left before timing; raise budget_s={budget_s:g}"
    if row.note:
        return row, None
    try:
        form = candidate.prepare(bench, dtype)
        seen, look_s = bench.verify(form)
        row.tolerance = bench.tolerance(dtype)
    except Exception as error:
        row.note, row.prepare_s = f"failed: {first_line(error)}", time.perf_counter() - start
        return row, None
    row.prepare_s, row.error = time.perf_counter() - start, seen.relative
    if not seen.ok(row.tolerance):
        row.note = f"differs: {seen.problem or f'{seen.relative:.1e} of the output'} (allowed {row.tolerance:.1e})"
        return row, None
    return row, Entry(row, form, candidate.any_shape, look_s)


def _fallback(bench: Workbench, entries: list[Entry], given: Entry) -> tuple[Form, float]:
    """What runs calls of other shapes, and the error allowed to it: the folded model where it is right and was not seen
    to be slower.
    """
    for entry in entries:
        if entry.form is bench.__dict__.get("_folding", (None,))[0]:
            timing, own = entry.row.timing, given.row.timing
            if timing is not None and own is not None and not faster(own, timing):
                return bench.folded, entry.row.tolerance or 0.0
    return bench.model, 0.0


class _Progress:
    """A bar on the terminal's error stream; nothing where that is no terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = TextColumn("optimize: {task.description}"), BarColumn(), TimeElapsedColumn()
        self._bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("folding", total=total)
        self._done = 0

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def advance(self) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done)

    def part(self, share: float) -> None:
        self._bar.update(self._task, completed=self._done + share)
