"""Plans: a program's values laid out in one piece of memory for one shape, so that kernels run one after the other
with nothing between them but a pointer.

A `Plan` belongs to one shape of inputs; its `Session`s hold the memory, one for each call that runs at the same time.
"""

import time
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.execution.memory_plan import ALIGN, Native, Step, laid_out

_BEYOND = 4096  # bytes behind the last value: a kernel's vectors may read past a map's end
_MANY = 1 << 19  # bytes; from here on they lie in huge pages
_MOST_IDLE = 4  # sessions kept when no call needs them


class LayoutChanged(Exception):
    """A value that PyTorch made lies otherwise in memory than when the plan was made."""


def storage(value: Tensor) -> int:
    """The address of the memory that it lies in, whole or in part."""
    return value.untyped_storage().data_ptr()


def handed_out(values: Sequence[Tensor], given: Sequence[Tensor], held: Set[int]) -> list[Tensor]:
    """`values` as the caller may keep and change them: copied where they lie in memory that is `held` from call to
    call, in an input, or in another value. (A copy that the model makes of a value is no node of the graph.)
    """
    taken, found = {*held, *map(storage, given)}, []
    for value in values:
        at = storage(value)
        found.append(value.clone() if at in taken else value)
        taken.add(at)
    return found


class Plan:
    """Where everything lies, and what runs. `values`: as those of a run step by step, their memory left out."""

    def __init__(
        self, steps: Sequence[Step], values: Sequence[Any], outputs: Sequence[int], fixed: Mapping[int, Any]
    ) -> None:
        self.outputs, self.fixed = list(outputs), dict(fixed)
        self.count = len(values)
        self.strides = [v.stride() if isinstance(v, Tensor) else () for v in values]
        self.shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in values]
        self.todo, self.slots, self.size = laid_out(steps, values, self.outputs)
        self._idle: list[Session] = []
        self.calls = 0  # since a plan was made last; several threads may lose some

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The outputs. Raises Moved where it cannot be run; then nothing was handed out."""
        self.calls += 1
        try:
            session = self._idle.pop()  # atomic, like append: no lock is needed
        except IndexError:
            session = Session(self)
        try:
            return session.run(given)
        finally:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(session)

    def timed(self, given: Sequence[Tensor]) -> dict[int, float]:
        """The seconds of every step of one call, by the place of its result."""
        session, clock = self._idle.pop() if self._idle else Session(self), dict[int, float]()
        session.run(given, clock)
        self._idle.append(session)
        return clock


def _memory(size: int) -> Tensor:
    """`size` bytes that begin with a line of the cache, and room behind them; in huge pages where there are many."""
    from leanconv.kernels.cpu.runtime.huge_pages import huge_page_buffer

    if size >= _MANY:
        return huge_page_buffer(size + _BEYOND)
    memory = torch.empty(size + _BEYOND + ALIGN, dtype=torch.uint8)
    return memory[-memory.data_ptr() % ALIGN :]


class Batch(NamedTuple):
    """Kernels that run one after the other with nothing between them: one call of the runtime.

    `late`: pointers that change from call to call (array, index, place, strides that the value must have). `fresh`:
    outputs that are made for the call (array, index, place, size, strides, dtype). `places`: of each kernel's result.
    """

    run: Any
    late: list[tuple[Any, int, int, tuple[int, ...]]]
    fresh: list[tuple[Any, int, int, tuple[int, ...], tuple[int, ...], torch.dtype]]
    places: list[int]


class Session:
    """The memory of one call of a plan, with every pointer in place."""

    def __init__(self, plan: Plan) -> None:
        self.outputs, self._plan = plan.outputs, plan
        self.memory = _memory(plan.size)
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
        self._entries: list[Batch | Step] = []
        self._calls: list[Any] = []  # of the batch that is being put together
        self._batch = Batch(None, [], [], [])
        for todo in plan.todo:
            if isinstance(todo, Native):
                self._kernel(todo)
            elif not self._is_view(todo):
                self._step(todo)
        self._finish()
        made = [each[2] for entry in self._entries if isinstance(entry, Batch) for each in entry.fresh]
        # Maps that kernels make for the call, each handed out once, are the caller's as they are.
        self._theirs = set(self.outputs) <= set(made) and len(set(self.outputs)) == len(self.outputs)

    def _step(self, step: Step) -> None:
        self._finish()
        self._entries.append(step)

    def _finish(self) -> None:
        """What was put together becomes an entry."""
        from leanconv.kernels.cpu.runtime.launch import LaunchBatch

        if self._calls:
            self._entries.append(self._batch._replace(run=LaunchBatch(self._calls, torch.get_num_threads())))
            self._calls, self._batch = [], Batch(None, [], [], [])

    def _is_view(self, step: Step) -> bool:
        """A view of this memory is made once: the step is done before any call."""
        if not step.views or not self._known.issuperset(step.reads):
            return False
        made = step.run(*[self._values[i] for i in step.reads])
        if not isinstance(made, Tensor) or storage(made) != self._storage:
            return False
        self._values[step.at] = made
        self._known.add(step.at)
        return True

    def _kernel(self, todo: Native) -> None:
        """One more kernel in the batch, its gates before it."""
        step, program = todo.step, todo.step.program
        maps: list[Any] = [self._values[i] if i in self._known else i for i in todo.maps]
        if todo.averages:
            gates = torch.empty(step.size[0], 3, step.size[1], dtype=torch.float32)
            there = {i for i in todo.averages if i in self._known and self._values[i].dtype == torch.float32}
            first, *rest = [self._values[i] if i in there else self._copied(i) for i in todo.averages]
            self._calls.append(todo.bound.gates(first, rest, gates))
            self._batch.places.append(todo.at)
            maps.append(gates)
        results = [todo.at] + ([todo.second] if step.average else [])
        pointers = program.pointers()
        for index, x in enumerate([*maps, *step.weights]):
            if isinstance(x, Tensor):
                pointers[index] = x.data_ptr()
            else:
                self._batch.late.append((pointers, index, x, self._plan.strides[x]))
        for index, place in enumerate(results, len(maps) + len(step.weights)):
            if place in self._known:
                pointers[index] = self._values[place].data_ptr()
            elif place == todo.at:
                self._batch.fresh.append((pointers, index, place, step.size, step.strides, step.dtype))
            else:
                size = (*step.size[:2], 1, 1)
                self._batch.fresh.append((pointers, index, place, size, (step.size[1], 1, 1, 1), torch.float32))
        self._calls.append((program, pointers))
        self._batch.places.append(todo.at)

    def _copied(self, place: int) -> Tensor:
        """A place for an average that PyTorch makes: it is copied there before the step, whose pointers cannot wait."""
        shape = self._plan.shapes[place]
        with torch.inference_mode(False):  # later calls may be made outside that mode
            kept = torch.empty(shape[0], shape[1], 1, 1, dtype=torch.float32)
        self._step(Step(kept.copy_, (place,), place, -1, (), False))
        return kept

    def run(self, given: Sequence[Tensor], clock: dict[int, float] | None = None) -> list[Tensor]:
        """The outputs. With a `clock`, the seconds of every step are added to what it has for the step's place."""
        values = list(self._values)
        values[: len(given)] = given
        for entry in self._entries:
            if not isinstance(entry, Batch):
                _computed(entry, values, clock)
                continue
            for pointers, index, place, size, strides, dtype in entry.fresh:
                made = values[place] = torch.empty_strided(size, strides, dtype=dtype)
                pointers[index] = made.data_ptr()
            for pointers, index, place, strides in entry.late:
                value = values[place]
                if value.stride() != strides:
                    raise LayoutChanged
                pointers[index] = value.data_ptr()
            if clock is None:
                entry.run()
            else:
                for place, seconds in zip(entry.places, entry.run.timed(), strict=True):
                    clock[place] = clock.get(place, 0.0) + seconds
        found = [values[i] for i in self.outputs]
        return found if self._theirs else handed_out(found, given, self._held)


def _computed(step: Step, values: list[Any], clock: dict[int, float] | None) -> None:
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = 0.0 if clock is None else now()
    made = step.run(*[values[i] for i in step.reads])
    if step.second < 0:
        values[step.at] = made
    else:
        values[step.at], values[step.second] = made
    if clock is not None:
        clock[step.at] = clock.get(step.at, 0.0) + now() - start
