"""Plans: a program for one shape of inputs, whose kernels run one after the other with nothing between them.

A `Plan` knows where every value lies (`memory_plan`). Its `Session`s hold the memory, one for each concurrent call.
"""

import time
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.execution.memory_plan import KernelStep, Step, plan_memory
from leanconv.kernels import backend
from leanconv.kernels.interface import Launch, LaunchBatch

_MOST_IDLE = 4  # sessions kept when no call needs them


class LayoutChanged(Exception):
    """A value from PyTorch has other strides than the plan expects."""


def storage(value: Tensor) -> int:
    """The address of the storage behind it."""
    return value.untyped_storage().data_ptr()


def handed_out(values: Sequence[Tensor], given: Sequence[Tensor], held: Set[int]) -> list[Tensor]:
    """Return `values`, cloning each that shares memory with the session, an input or another output.

    `held`: the storages that the session keeps from call to call.
    """
    taken, found = {*held, *map(storage, given)}, []
    for value in values:
        at = storage(value)
        found.append(value.clone() if at in taken else value)
        taken.add(at)
    return found


class Plan:
    """What runs and where its values lie. `values`: shapes, strides and dtypes of all values, as one run saw them."""

    def __init__(
        self, steps: Sequence[Step], values: Sequence[Any], outputs: Sequence[int], fixed: Mapping[int, Any]
    ) -> None:
        self.outputs, self.fixed = list(outputs), dict(fixed)
        self.count = len(values)
        self.strides = [v.stride() if isinstance(v, Tensor) else () for v in values]
        self.shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in values]
        self.todo, self.slots, self.size = plan_memory(steps, values, self.outputs)
        self._idle: list[Session] = []
        self.calls = 0  # since the last plan was added; several threads may lose some

    def __call__(self, given: Sequence[Tensor], clock: dict[int, float] | None = None) -> list[Tensor]:
        """The outputs; the seconds of each step go into `clock`.

        Raises: LayoutChanged where the plan cannot run; then nothing was returned.
        """
        self.calls += 1
        try:
            session = self._idle.pop()  # atomic, like append: no lock is needed
        except IndexError:
            session = Session(self)
        try:
            return session.run(given, clock)
        finally:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(session)

    def timed(self, given: Sequence[Tensor]) -> dict[int, float]:
        """The seconds of every step of one call, by the place of its result."""
        clock: dict[int, float] = {}
        self(given, clock)
        return clock


class Late(NamedTuple):
    """An operand bound at each call (graph input, PyTorch result); its value must have these strides."""

    launch: Launch
    operand: int
    place: int
    strides: tuple[int, ...]


class Fresh(NamedTuple):
    """An output allocated at each call, which the caller keeps."""

    launch: Launch
    operand: int
    place: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class BatchStep(NamedTuple):
    """Consecutive launches as one batch, with the operands that change from call to call.

    `places`: of each launch's result.
    """

    run: LaunchBatch
    late: list[Late]
    fresh: list[Fresh]
    places: list[int]


class Session:
    """The memory of one call of a plan, with every launch's operands in place."""

    def __init__(self, plan: Plan) -> None:
        self.outputs, self._plan = plan.outputs, plan
        self.memory = backend().allocate(plan.size)
        self._storage = storage(self.memory)
        fixed = [x for x in plan.fixed.values() if isinstance(x, Tensor)]  # others are numbers
        self._held = {self._storage, *map(storage, fixed)}  # the next call writes or reads there
        self._values: list[Any] = [None] * plan.count
        self._known = set(plan.slots) | set(plan.fixed)
        for place, value in plan.fixed.items():
            self._values[place] = value
        for place, slot in plan.slots.items():
            rest = self.memory[slot.offset : plan.size].view(slot.dtype)
            self._values[place] = rest.as_strided(slot.shape, slot.strides)
        self._entries: list[BatchStep | Step] = []
        self._collect()
        for todo in plan.todo:
            if isinstance(todo, KernelStep):
                self._launch(todo)
            elif not self._is_view(todo):
                self._step(todo)
        self._finish()
        made = [each.place for entry in self._entries if isinstance(entry, BatchStep) for each in entry.fresh]
        # Maps that kernels compute for the call, each returned once, are the caller's as they are.
        self._theirs = set(self.outputs) <= set(made) and len(set(self.outputs)) == len(self.outputs)

    def _collect(self) -> None:
        """Begin to collect launches for the next batch, as `BatchStep` has them."""
        self._launches: list[Launch] = []
        self._places: list[int] = []
        self._late: list[Late] = []
        self._fresh: list[Fresh] = []

    def _step(self, step: Step) -> None:
        self._finish()
        self._entries.append(step)

    def _finish(self) -> None:
        """The launches collected so far become one entry."""
        if self._launches:
            batch = backend().batch(self._launches)
            self._entries.append(BatchStep(batch, self._late, self._fresh, self._places))
            self._collect()

    def _is_view(self, step: Step) -> bool:
        """Whether the step only views this memory: then it is done once, before any call."""
        if not step.views or not self._known.issuperset(step.reads):
            return False
        made = step.run(*[self._values[i] for i in step.reads])
        if not isinstance(made, Tensor) or storage(made) != self._storage:
            return False
        self._values[step.at] = made
        self._known.add(step.at)
        return True

    def _launch(self, todo: KernelStep) -> None:
        """One more launch in the batch."""
        prepared = todo.prepared
        there = {i for i in todo.averages if i in self._known and self._values[i].dtype == torch.float32}
        launch = prepared.launch([self._values[i] if i in there else self._copied(i) for i in todo.averages])
        for operand, place in enumerate(todo.maps):
            if place in self._known:
                launch.put(operand, self._values[place])
            else:
                self._late.append(Late(launch, operand, place, self._plan.strides[place]))
        results = [todo.at] + ([todo.second] if prepared.average else [])
        for operand, place in enumerate(results, len(todo.maps)):
            if place in self._known:
                launch.put(operand, self._values[place])
            elif place == todo.at:
                self._fresh.append(Fresh(launch, operand, place, prepared.size, prepared.strides, prepared.dtype))
            else:
                n, o, *_ = prepared.size
                self._fresh.append(Fresh(launch, operand, place, (n, o, 1, 1), (o, 1, 1, 1), torch.float32))
        self._launches.append(launch)
        self._places.append(todo.at)

    def _copied(self, place: int) -> Tensor:
        """Memory for an average that PyTorch computes: a step copies it there, for a launch needs a fixed address."""
        shape = self._plan.shapes[place]
        with torch.inference_mode(False):  # later calls may run outside that mode
            kept = torch.empty(shape[0], shape[1], 1, 1, dtype=torch.float32)
        self._step(Step(kept.copy_, (place,), place, -1, (), False))
        return kept

    def run(self, given: Sequence[Tensor], clock: dict[int, float] | None = None) -> list[Tensor]:
        """The outputs. With a `clock`, the seconds of every step are added at the place of its result."""
        values = list(self._values)
        values[: len(given)] = given
        for entry in self._entries:
            if not isinstance(entry, BatchStep):
                _computed(entry, values, clock)
                continue
            for launch, operand, place, size, strides, dtype in entry.fresh:
                made = values[place] = torch.empty_strided(size, strides, dtype=dtype)
                launch.put(operand, made)
            for launch, operand, place, strides in entry.late:
                value = values[place]
                if value.stride() != strides:
                    raise LayoutChanged
                launch.put(operand, value)
            if clock is None:
                entry.run()
            else:
                for place, seconds in zip(entry.places, entry.run.timed(), strict=True):
                    clock[place] = clock.get(place, 0.0) + seconds
        found = [values[i] for i in self.outputs]
        return found if self._theirs else handed_out(found, given, self._held)


def _computed(step: Step, values: list[Any], clock: dict[int, float] | None) -> None:
    """Run a step of PyTorch, and add its seconds to `clock`."""
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = 0.0 if clock is None else now()
    made = step.run(*[values[i] for i in step.reads])
    if step.second < 0:
        values[step.at] = made
    else:
        values[step.at], values[step.second] = made
    if clock is not None:
        clock[step.at] = clock.get(step.at, 0.0) + now() - start
