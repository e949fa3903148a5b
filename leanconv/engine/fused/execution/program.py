"""A graph as a flat list of steps: what runs, what it reads, where its result goes, what is freed after it."""

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.execution.memory_plan import Step
from leanconv.engine.fused.execution.session import LayoutChanged, Plan, handed_out, storage
from leanconv.engine.fused.ir.graph import Graph, Node, Run
from leanconv.engine.fused.ir.kinds.values import AverageOf, Constant, Length, Size
from leanconv.engine.fused.lowering.implementations import plain_implementation
from leanconv.engine.fused.lowering.kernels import KernelRun
from leanconv.kernels import to_channels_last, to_contiguous

_MOST_PLANS = 8  # shapes that get a memory plan at once; others run step by step ...
_AGAIN = 8  # ... until they have come so often that they replace the one called least


class Program:
    """Runs a graph. Any number of threads may be inside it at once.

    The first call of a shape runs step by step and records shapes and strides. Later calls follow a `Plan`: memory is
    planned beforehand, and kernels run one after the other.
    """

    def __init__(self, graph: Graph, runs: Mapping[Node, Run], planes: Sequence[bool] = ()) -> None:
        """`planes`: which outputs are returned contiguous (default: none; maps are then in channels_last)."""
        place: dict[Node, int] = {}
        for node in (*graph.inputs, *graph.nodes):
            place.setdefault(node, len(place))
        self.places, self._size = place, len(place)
        self._fixed = {place[node]: node.op.value for node in graph.nodes if isinstance(node.op, Constant)}
        sizes = [(node, node.op.how) for node in graph.nodes if isinstance(node.op, Size)]
        self._sizes = [(place[x], how, [place[y] for y in x.inputs]) for x, how in sizes]
        self._held = frozenset(storage(x) for x in self._fixed.values())
        self._dtypes = [node.dtype for node in graph.inputs]
        before, read = self._before(graph, runs)
        seconds = {node.inputs[0]: place[node] for node in graph.nodes if isinstance(node.op, AverageOf)}
        freed = _last_readers(graph)
        self.steps = before + [
            Step(
                runs[node],
                tuple(read[x] for x in node.inputs),
                place[node],
                seconds.get(node, -1),
                tuple(place[x] for x in freed.get(node, ())),
                node.op.may_alias,
            )
            for node in graph.nodes
            if node.op.is_step
        ]
        self._outputs = [read[node] for node in graph.outputs]
        for i, node in enumerate(graph.outputs):
            if any(planes[i : i + 1]) and len(node.shape) == 4 and node.shape[1] > 1 < node.shape[2] * node.shape[3]:
                self._outputs[i] = self._changed(to_contiguous, read[node], self.steps)
        self._nodes = {place[node]: node for node in graph.nodes if node.op.is_step}
        self.left_out: dict[str, str] = {}  # steps that failed and are PyTorch's since, and why
        self._plans: dict[Hashable, Plan] = {}
        self._unplanned: set[Hashable] = set()  # shapes that no plan can run
        self._waiting: dict[Hashable, int] = {}  # shapes without a plan: how often they came
        self._lock = threading.Lock()

    @property
    def alone(self) -> bool:
        """Whether PyTorch computes nothing in it."""
        return all(
            isinstance(step.run, KernelRun) or step.run in (to_channels_last, to_contiguous) for step in self.steps
        )

    def _before(self, graph: Graph, runs: Mapping[Node, Run]) -> tuple[list[Step], dict[Node, int]]:
        """Steps that copy inputs to channels_last, except images read in planes; where each value is read."""
        steps: list[Step] = []
        read = dict(self.places)
        for node in graph.inputs:
            if len(node.shape) == 4 and not _in_planes(graph, node, runs):
                read[node] = self._changed(to_channels_last, read[node], steps)
        return steps, read

    def _changed(self, run: Run, place: int, steps: list[Step]) -> int:
        """The place of a map in another layout, by one more step."""
        steps.append(Step(run, (place,), self._size, -1, (), True))
        self._size += 1
        return self._size - 1

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given = self._given(tensors)
        key = self._key(given)
        plan = self._plans.get(key)
        if plan is not None:
            try:
                return plan(given)
            except LayoutChanged:
                return self._stepwise(given)
            except Exception as error:
                return self._without_plan(key, given, error)
        if key in self._unplanned or not all(x.numel() for x in given) or not self._has_room(key):
            return self._stepwise(given)
        try:
            return self._planned(key, given)
        except Exception as error:
            return self._without_plan(key, given, error)

    def settle(self, *tensors: Tensor) -> list[Tensor]:
        """A first call, step by step: a step that fails runs in PyTorch from then on, and `left_out` says so."""
        given = self._given(tensors)
        values = self._values(given, self._fixed | self._lengths(given))
        for index, step in enumerate(self.steps):
            try:
                step.into(values)
            except Exception as error:
                node = self._nodes.get(step.at)
                if node is None:
                    raise
                self.steps[index] = step = step._replace(run=plain_implementation(node))
                step.into(values)
                self.left_out[repr(node)] = f"{type(error).__name__}: {error}"
            for i in step.frees:
                values[i] = None
        return handed_out([values[i] for i in self._outputs], given, self._held)

    def values(self, *tensors: Tensor) -> list[Any]:
        """Every value of one call, run step by step, by its place. All are kept: for measuring."""
        given = self._given(tensors)
        values = self._values(given, self._fixed | self._lengths(given))
        for step in self.steps:
            step.into(values)
        return values

    def again(self, values: Sequence[Any], changed: Mapping[int, Any]) -> list[Tensor]:
        """The outputs of the call that `values` is from, with other values at some places."""
        values, moved = list(values), set(changed)
        for place, value in changed.items():
            values[place] = value
        for step in self.steps:
            if moved.isdisjoint(step.reads) or step.at in changed:
                continue
            step.into(values)
            moved |= {step.at, step.second}
        return [values[i] for i in self._outputs]

    def _without_plan(self, key: Hashable, given: Sequence[Tensor], error: Exception) -> list[Tensor]:
        """Step by step from now on for these shapes, unless that fails too."""
        made = self._stepwise(given)
        with self._lock:
            self._plans = {each: plan for each, plan in self._plans.items() if each != key}
            self._unplanned = {*list(self._unplanned)[-8 * _MOST_PLANS :], key}
        self.left_out["its plan of the memory"] = f"{type(error).__name__}: {error}"
        return made

    def _has_room(self, key: Hashable) -> bool:
        """Whether a shape gets a plan now."""
        with self._lock:
            if len(self._plans) < _MOST_PLANS:
                return True
            if len(self._waiting) >= 8 * _MOST_PLANS and key not in self._waiting:
                self._waiting.clear()
            self._waiting[key] = self._waiting.get(key, 0) + 1
            return self._waiting[key] >= _AGAIN

    def timed(self, *tensors: Tensor) -> dict[int, float]:
        """The seconds of every step of one call on shapes that have a plan, by the place of its result."""
        given = self._given(tensors)
        return self._plans[self._key(given)].timed(given)

    def _given(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Maps in planes or in channels_last, in the types that the steps take."""
        given = []
        for x, dtype in zip(tensors, self._dtypes, strict=True):
            if x.dim() == 4 and not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
                x = to_channels_last(x)
            given.append(x if x.dtype is dtype else x.to(dtype))  # `to` takes 1 µs even where nothing is to do
        return given

    @staticmethod
    def _key(given: Sequence[Tensor]) -> Hashable:
        return (torch.get_num_threads(), *[(x.shape, x.stride(), x.dtype) for x in given])

    def _stepwise(self, given: Sequence[Tensor]) -> list[Tensor]:
        values = self._values(given, self._fixed | self._lengths(given))
        for step in self.steps:
            step.into(values)
            for i in step.frees:
                values[i] = None
        return handed_out([values[i] for i in self._outputs], given, self._held)

    def _planned(self, key: Hashable, given: Sequence[Tensor]) -> list[Tensor]:
        """As `_stepwise`; the shapes and strides that it sees become a plan.

        Values that depend on sizes alone (grids, masks) are computed this once.
        """
        fixed = self._fixed | self._lengths(given)
        values, steps = self._values(given, fixed), []
        seen = [_outline(value) for value in values]
        for step in self.steps:
            run, reads, at, second, frees, _ = step
            made = run(*[values[i] for i in reads])
            if second < 0:
                values[at] = made
                if fixed.keys() >= set(reads):
                    fixed[at] = made
                else:
                    steps.append(step)
            else:
                values[at], values[second] = made
                seen[second] = _outline(values[second])
                steps.append(step)
            seen[at] = _outline(values[at])
            del made
            for i in frees:
                values[i] = None
        needed = {*self._outputs, *(at for step in steps for at in step.reads)}
        fixed = {at: value for at, value in fixed.items() if at in needed}
        plan = Plan(steps, seen, self._outputs, fixed)
        with self._lock:
            plans = dict(self._plans)
            while len(plans) >= _MOST_PLANS and key not in plans:
                del plans[min(plans, key=lambda each: plans[each].calls)]
            for other in plans.values():
                other.calls = 0
            self._plans = {**plans, key: plan}  # replaced as a whole: other threads see the old or the new
            self._waiting.pop(key, None)
        held = {storage(value) for value in fixed.values() if isinstance(value, Tensor)}  # the plan keeps these
        return handed_out([values[i] for i in self._outputs], given, held)

    def _values(self, given: Sequence[Tensor], fixed: Mapping[int, Any]) -> list[Any]:
        values: list[Any] = [*given, *[None] * (self._size - len(given))]
        for place, value in fixed.items():
            values[place] = value
        return values

    def _lengths(self, given: Sequence[Tensor]) -> dict[int, Any]:
        """The sizes in the graph as they are in this call, by their places."""
        found: dict[int, Any] = {}
        for at, how, reads in self._sizes:
            if isinstance(how, Length):
                found[at] = given[how.tensor].shape[how.axis]
            else:
                found[at] = how(*[found[i] for i in reads])
        return found


def _outline(value: Any) -> Tensor | None:
    """A tensor's shape, strides and dtype without its memory; None for what is no tensor."""
    if not isinstance(value, Tensor):
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _in_planes(graph: Graph, image: Node, runs: Mapping[Node, Run]) -> bool:
    """Whether all readers of an input are kernels that take an image in planes, and read it once."""
    readers = [node for node in graph.nodes if image in node.inputs]
    alone = all(node.inputs.index(image) == 0 and node.inputs.count(image) == 1 for node in readers)
    kernels = [run for node in readers if isinstance(run := runs.get(node), KernelRun) and run.bound.planes]
    return alone and len(kernels) == len(readers) and image not in graph.outputs


def _last_readers(graph: Graph) -> dict[Node, list[Node]]:
    """For each node the values that no later node needs. Inputs, outputs and constants stay."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        if isinstance(node.op, AverageOf):
            last[node] = node.inputs[0]  # until somebody reads it
            continue
        last[node] = node
        for source in node.inputs:
            last[source] = node
    kept = {*graph.inputs, *graph.outputs, *(node for node in graph.nodes if isinstance(node.op, Constant | Size))}
    freed: dict[Node, list[Node]] = {}
    for source, reader in last.items():
        if source not in kept:
            freed.setdefault(reader, []).append(source)
    return freed
