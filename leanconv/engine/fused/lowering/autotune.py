"""Which implementation each node runs: all of them are timed on this machine, in short turns."""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Graph, Node, Op, Run
from leanconv.engine.fused.ir.kinds.integer import Integer
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, Implementation
from leanconv.engine.fused.lowering.kernels import KernelRun, SplitRun
from leanconv.engine.fused.lowering.report import TuningRecord, TuningReport, calls
from leanconv.engine.fused.lowering.samples import geometry, of_few_rows, sample
from leanconv.engine.trials import Still
from leanconv.kernels import Target, backend
from leanconv.measure.timing.latency import Timing, interleave, once_ms

# Seconds that the turns of one block may take, for implementations that a first look did not rule out.
BLOCK_S, MIN_ROUNDS, MAX_ROUNDS = 0.1, 5, 60
HOPELESS, LOST = 1.5, 4.0  # times the best one's look: one more look is given, and none
# A call of so many ms needs no warm-up, and varies less: LONG_ROUNDS suffice for those within LONG_HOPELESS.
LONG_MS, LONG_ROUNDS, LONG_HOPELESS = 20.0, 3, 1.25
ALIKE = {"aten", "onednn"}  # one code in the end: of long calls, the one whose look was quicker goes on
SHORT_MS = 5.0  # a first launch of a kernel costs 0.25 ms, fifty times a small layer
PRIMED_MS = 3.0  # shorter calls are timed in warm caches
# What runs each of two steps.
STEPS = {"split": ("kernel", "kernel"), "tiles+tiles": ("tiles", "tiles"), "kernel+onednn": ("kernel", "onednn")}
PREFERRED, MARGIN = ("kernel", "merged", "tiles", "split", "tiles+tiles"), 0.05
NOTHING = -math.inf  # the deadline of a choice that is not measured at all
# Largest difference from PyTorch's answer, as a share of a channel's largest value. A channel counts at least as a part
# of the largest channel, whose rounding it may have.
TOLERANCE, PART = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2}, 0.2
_MEASURED: dict[Hashable, dict[str, Any]] = {}  # by target and geometry; one process, one machine


class NothingRuns(Exception):
    """Nodes that none of their implementations runs, and why."""

    def __init__(self, nodes: dict[Node, str]) -> None:
        super().__init__("; ".join(f"nothing here runs {node!r}: {why}" for node, why in nodes.items()))
        self.nodes = nodes


def autotune(
    graph: Graph,
    *,
    seconds: float,
    clock: str = "wall",
    forms: Mapping[type[Op], Sequence[Implementation]] = IMPLEMENTATIONS,
    target: Target | None = None,
    splits: bool = True,
    still: Still = contextlib.nullcontext,
) -> tuple[dict[Node, Run], TuningReport]:
    """A function for every node of the graph, and the table of times behind the choice.

    Args:
        seconds: the most that measuring may take; 0 measures nothing. A node that no time is left for gets its kernel,
            else the implementation whose first call was the quickest.
        clock: as `measure.timing.latency.interleave` has it.
        target: what kernels are chosen for (default: this machine).
        splits: whether a node may become two. Without, the graph stays as it is.
        still: nothing is timed but inside `with still():`.
    """
    forms = {kind: [form.on(target) for form in each] for kind, each in forms.items()}
    if seconds > 0:
        _compile(graph, forms, target, still)
    deadline = time.perf_counter() + seconds if seconds > 0 else NOTHING
    runs: dict[Node, Run] = {}
    names: dict[Node, str] = {}
    seen: dict[Hashable, list[Any]] = {}
    unrun: dict[Node, str] = {}
    chosen_ms: dict[Node, float] = {}
    for node in list(graph.nodes):
        if not node.op.is_step:
            continue
        choices = forms[type(node.op)]
        key, label = (target, geometry(node)), repr(node.op)
        measured = {choices[0].name: 0.0} if len(choices) == 1 else _MEASURED.get(key)
        if measured is None:
            with still():
                measured = _measure(node, choices, deadline, clock)
            if all(0 < ms < math.inf for ms in measured.values() if isinstance(ms, float)):  # else it is undecided
                _MEASURED[key] = measured
        try:
            name, run = _best(node, choices if splits else [each for each in choices if not each.splits], measured)
        except NothingRuns as failed:
            unrun |= failed.nodes
            continue
        chosen_ms[node] = measured[name]
        if len(choices) > 1:
            seen.setdefault(key, [label, node.shape, measured, name, 0])[4] += 1
        if isinstance(run, SplitRun):
            runs[graph.put(run.head, at=node)] = run.first
            names[run.head], name = STEPS[name]
            node.inputs, node.op, run = run.tail.inputs, run.tail.op, run.second
        runs[node] = run
        names[node] = name
    if unrun:
        raise NothingRuns(unrun)
    rows = [
        TuningRecord(
            label,
            shape,
            count,
            {form: ms for form, ms in measured.items() if isinstance(ms, float) and 0 < ms < math.inf},
            {form: why for form, why in measured.items() if isinstance(why, str)},
            name,
        )
        for label, shape, measured, name, count in seen.values()
    ]
    report = TuningReport(rows, clock, left_out=graph.left_out | calls(graph), names=names, chosen_ms=chosen_ms)
    return runs, report


def _compile(
    graph: Graph, forms: Mapping[type[Op], Sequence[Implementation]], target: Target | None, still: Still
) -> None:
    """Compile the kernels of all implementations of all nodes that were not measured before, on several cores."""
    steps = [node for node in graph.nodes if node.op.is_step and len(forms[type(node.op)]) > 1]
    steps = [node for node in steps if (target, geometry(node)) not in _MEASURED]
    if backend().why_not() or not steps:
        return
    with still():
        backend().calibrate(target)
    with backend().compiling_ahead():
        for node in steps:
            inputs = [sample(x, empty=True) for x in node.inputs]
            for form in forms[type(node.op)]:
                with contextlib.suppress(Exception):  # the error shows when it is measured
                    run = form.make(node)
                    if isinstance(run, KernelRun | SplitRun):
                        run.meet(inputs)


def _best(node: Node, choices: Sequence[Implementation], measured: Mapping[str, Any]) -> tuple[str, Run]:
    """The implementation of least cost, for this node."""
    why = next((text for text in measured.values() if isinstance(text, str)), "no form covers it")
    names = sorted((name for name, ms in measured.items() if isinstance(ms, float)), key=partial(_cost, node, measured))
    for name in names:
        form = next((form for form in choices if form.name == name), None)
        if form is None:
            continue
        try:
            made = form.make(node)
        except Exception as error:  # the one that was measured had the same sizes and other weights
            why = _words(error)
            continue
        if made is not None:
            return name, made
    raise NothingRuns({node: why})


def _cost(node: Node, measured: Mapping[str, float], name: str) -> tuple[bool, float, str]:
    """Prefer our kernel unless another is clearly faster: consecutive kernels need no PyTorch call in between.

    The reference of an integer primitive comes last. On a busy machine one stalled launch would let it win.
    """
    ours = name in PREFERRED
    return isinstance(node.op, Integer) and not ours, measured[name] * (1 - MARGIN * ours), name


def _measure(node: Node, choices: Sequence[Implementation], deadline: float, clock: str) -> dict[str, Any]:
    """Milliseconds of each implementation that is right, or the reason why it is not used."""
    if isinstance(node.op, Integer):
        return _measure_integer(node, choices, deadline, clock)
    inputs = [sample(x) for x in node.inputs]
    found, calls, first = _right(node, choices, inputs, clock)
    if not calls:
        return found
    if time.perf_counter() > deadline:
        return found | _undecided(first, deadline)
    looks = _looks(calls, first, clock)
    best = min(looks.values())
    near = (LONG_HOPELESS if best >= LONG_MS else HOPELESS) * best
    close = {name: call for name, call in calls.items() if looks[name] <= near}
    if best >= LONG_MS and close.keys() >= ALIKE:
        del close[max(ALIKE, key=lambda name: looks[name])]
    if len(close) > 1:  # without the slow ones, which disturb the caches
        looks |= {name: timing.median_ms for name, timing in _turns(close, best, deadline, clock).items()}
    return found | looks


def _undecided(first: Mapping[str, float], deadline: float, ours: Sequence[str] = ()) -> dict[str, float]:
    """Our kernel, which mostly wins, else the implementation whose first call was the quickest; it has that time.

    `ours`: names of kernels, the first of which counts as it.
    """
    name = next((name for name in ours or PREFERRED[:1] if name in first), "")
    name = name or min(first, key=lambda name: first[name])
    return dict.fromkeys(first, math.inf) | {name: 0.0 if deadline == NOTHING else first[name]}


def _measure_integer(
    node: Node, choices: Sequence[Implementation], deadline: float, clock: str
) -> dict[str, float | str]:
    """Likewise for an integer primitive. Every bit is compared, on `ROWS` rows: the reference is exact and slow.

    The reference has no turns: it counts as so many times slower than its first call as the map has more rows.
    """
    few = of_few_rows(node)
    found, calls, first = _right(few, choices, [sample(x) for x in few.inputs], clock)
    if not calls:
        return found
    rows = max(1.0, node.numbers / few.numbers)
    first = {name: rows * ms for name, ms in first.items()}
    if time.perf_counter() > deadline:
        return found | _undecided(first, deadline, PREFERRED)
    found |= first
    inputs = [sample(x) for x in node.inputs]
    kernels = {
        form.name: _calling(run, inputs) or partial(run, *inputs)
        for form in choices
        if form.name in first and form.name in PREFERRED and (run := form.make(node)) is not None
    }
    if not kernels:
        return found
    about = min(once_ms(call, clock) for call in kernels.values())
    return found | {name: timing.median_ms for name, timing in _turns(kernels, about, deadline, clock).items()}


def _right(
    node: Node, choices: Sequence[Implementation], inputs: list[Tensor], clock: str
) -> tuple[dict[str, Any], dict[str, Callable[[], object]], dict[str, float]]:
    """Why some implementations are not used; how the others are called; milliseconds of a first call of each."""
    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    want: Any = None
    # PyTorch's own first: the others are compared with it.
    for form in sorted(choices, key=lambda form: form.name != "aten"):
        try:
            run = form.make(node)
            if run is None:
                found[form.name] = "does not cover it"
                continue
            answers: list[Any] = []
            ms = once_ms(lambda run=run, answers=answers: answers.append(run(*inputs)), clock)  # type: ignore[misc]
            seen = answers.pop()
            call = _calling(run, inputs) or partial(run, *inputs)
            # A kernel packs its weights in the very first call: 58 of 61 ms for 512 channels in four groups, 16×16.
            if ms < LONG_MS or isinstance(run, KernelRun | SplitRun):
                ms = once_ms(call, clock)
        except Exception as error:  # one that cannot run here is one less to choose from
            found[form.name] = _words(error)
            continue
        want = seen if want is None else want
        if not agrees(seen, want, 0.0 if isinstance(node.op, Integer) else TOLERANCE.get(node.dtype, 1e-4)):
            found[form.name] = "differs from PyTorch's"
            continue
        calls[form.name], first[form.name] = call, ms
    return found, calls, first


def _words(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _looks(calls: Mapping[str, Callable[[], object]], first: Mapping[str, float], clock: str) -> dict[str, float]:
    """Milliseconds of one call of each, the less of two where it is short, or slow through another process.

    A long one was timed before. One that lost is not called again, but for our kernels, which mostly win: a machine
    that stalls one call of 10 µs for 20 ms would make a network several times slower.
    """
    looks = {name: first[name] if first[name] >= LONG_MS else once_ms(call, clock) for name, call in calls.items()}
    best = min(looks.values())
    for name, call in calls.items():
        lost = looks[name] >= LOST * best
        if looks[name] < SHORT_MS or HOPELESS * best < looks[name] < LOST * best or (lost and name in PREFERRED):
            looks[name] = min(looks[name], once_ms(call, clock))
    return looks


def _turns(
    calls: Mapping[str, Callable[[], object]], about_ms: float, deadline: float, clock: str
) -> dict[str, Timing]:
    """In turns. A plan's steps find memory and input in the cache, as the last step left them.

    So each is called once before it is timed, unless it is so long that no cache holds its data.
    """
    budget = min(BLOCK_S, max(0.0, deadline - time.perf_counter()))
    return interleave(
        calls,
        budget_s=budget,
        warmup=0,
        min_rounds=LONG_ROUNDS if about_ms >= LONG_MS else MIN_ROUNDS,
        max_rounds=MAX_ROUNDS,
        clock=clock,
        primed=about_ms < PRIMED_MS,
    )


def _calling(run: Run, inputs: list[Tensor]) -> Callable[[], object] | None:
    """A kernel as a plan launches it; None for all else, and where a plan would not launch it."""
    return run.launch(inputs) if isinstance(run, KernelRun | SplitRun) else None


def agrees(seen: Any, want: Any, tolerance: float) -> bool:
    """Two answers (a map, or a map and its average) within `tolerance` of each channel's size.

    `leanconv.agreement` judges the whole network; this is quicker, and looks at every implementation of every block.
    """
    if isinstance(want, tuple):
        return isinstance(seen, tuple) and all(agrees(a, b, tolerance) for a, b in zip(seen, want, strict=True))
    if not want.is_floating_point():
        return seen.dtype == want.dtype and torch.equal(seen, want)
    if seen.shape != want.shape or not want.numel():
        return seen.shape == want.shape  # type: ignore[no-any-return]
    others = (0, *range(2, want.dim()))
    # In place and by amax: a third of the time that `.abs().max()` takes, and these maps are large.
    size = want.abs().amax(others)
    size = size.clamp(min=max(1e-30, PART * float(size.amax())))
    return bool(((seen - want).abs_().amax(others) <= tolerance * size).all())
