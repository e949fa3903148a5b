"""Plans: a program's values laid out in one piece of memory for one shape, so that kernels run one after the other
with nothing between them but a pointer.

A `Plan` belongs to one shape of inputs; its `Session`s hold the memory, one for each call that runs at the same time.
"""

import contextlib
import mmap
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.kernels import KernelRun, gates_launch

_ALIGN = 64  # bytes; a line of the cache, a vector of AVX-512
_BEYOND = 4096  # bytes behind the last value: a kernel's vectors may read past a map's end
_HUGE = 1 << 21  # a huge page
_MOST_IDLE = 4  # sessions kept when no call needs them


class Step(NamedTuple):
    """What runs, the places of what it reads, of its results (second: -1 for none), what is freed after it, and
    whether its result may lie in what it read (a view).
    """

    run: Callable[..., Any]
    reads: tuple[int, ...]
    at: int
    second: int
    frees: tuple[int, ...]
    views: bool


class Slot(NamedTuple):
    """A value in the plan's memory, in float32 numbers."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Native(NamedTuple):
    """A kernel's step for these shapes: the places of its maps and averages, where its results go."""

    step: Any
    maps: tuple[int, ...]
    averages: tuple[int, ...]
    bound: Any
    at: int
    second: int


class Moved(Exception):
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
    """Where everything lies, and what runs. `values`: those of a run step by step, for their sizes."""

    def __init__(
        self, steps: Sequence[Step], values: Sequence[Any], outputs: Sequence[int], fixed: Mapping[int, Tensor]
    ) -> None:
        self.outputs, self.fixed = list(outputs), dict(fixed)
        self.todo: list[Native | Step] = [_native(step, values) or step for step in steps]
        self.slots: dict[int, Slot] = {}
        self.count = len(values)
        self.strides = [v.stride() if isinstance(v, Tensor) else () for v in values]
        self.shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in values]
        self.size = self._lay_out(steps, values)
        self._idle: list[Session] = []

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The outputs. Raises Moved where it cannot be run; then nothing was handed out."""
        try:
            session = self._idle.pop()  # atomic, like append: no lock is needed
        except IndexError:
            session = Session(self)
        try:
            return session.run(given)
        finally:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(session)

    def _lay_out(self, steps: Sequence[Step], values: Sequence[Any]) -> int:
        """An offset for every result of a kernel that is not handed out; two share memory if they are never needed at
        the same time. First fit, in the order of the steps. Returns the size in float32 numbers.
        """
        free_at = _ends(steps, len(values))
        taken: list[tuple[int, int, int]] = []  # start, stop, last step that needs it
        size = 0
        for now, (step, todo) in enumerate(zip(steps, self.todo, strict=True)):
            taken = [piece for piece in taken if piece[2] >= now]
            for place in (step.at, step.second):
                if not isinstance(todo, Native) or place < 0 or place in self.outputs:
                    continue
                value: Tensor = values[place]
                length = -(-value.numel() * 4 // _ALIGN) * _ALIGN // 4
                start = _gap(taken, length)
                taken.append((start, start + length, free_at[place]))
                size = max(size, start + length)
                self.slots[place] = Slot(start, tuple(value.shape), value.stride())
        return size


def _native(step: Step, values: Sequence[Any]) -> Native | None:
    """The step as a kernel that takes nothing but pointers, where it is one."""
    run = step.run
    if not isinstance(run, KernelRun):
        return None
    inputs = [values[place] for place in step.reads]
    maps, places = run.maps(inputs), run.maps(step.reads)
    averages = tuple(run.averages(step.reads))
    if any(not values[place].flatten(1).is_contiguous() for place in averages):
        return None
    made = run.step(maps)
    if made is None or not made.program.native:
        return None
    return Native(made, tuple(p for p in places if p is not None), averages, run.bound, step.at, step.second)


def _ends(steps: Sequence[Step], count: int) -> list[int]:
    """The last step that needs each value, itself or through a view of it."""
    last = [-1] * count
    for now, step in enumerate(steps):
        for place in (step.at, step.second):
            if place >= 0:
                last[place] = now
        for place in step.reads:
            last[place] = now
    for step in reversed(steps):
        if step.views:
            for place in step.reads:
                last[place] = max(last[place], last[step.at])
    return last


def _gap(taken: Sequence[tuple[int, int, int]], length: int) -> int:
    """The lowest start of `length` numbers that no taken piece overlaps."""
    start = 0
    for low, high, _ in sorted(taken):
        if low - start >= length:
            break
        start = max(start, high)
    return start


def _memory(size: int) -> Tensor:
    """`size` float32 numbers and room to align them; in huge pages where there are many and the system has such.

    A map's rows lie in as many small pages as the translation buffer has entries, or more.
    """
    if size * 4 < _HUGE:
        return torch.empty(size + (_BEYOND + _ALIGN) // 4)
    memory = mmap.mmap(-1, -(-(size * 4 + _BEYOND) // _HUGE) * _HUGE + _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


class Session:
    """The memory of one call of a plan, with every pointer in place."""

    def __init__(self, plan: Plan) -> None:
        from leanconv.kernels.cpu.program import library

        self.outputs, self._library = plan.outputs, library()
        self.memory = _memory(plan.size)
        self._storage = storage(self.memory)
        self._held = {self._storage, *map(storage, plan.fixed.values())}  # the next call writes or reads there
        skip = -self.memory.data_ptr() % (_HUGE if plan.size * 4 >= _HUGE else _ALIGN) // 4
        self._values: list[Any] = [None] * plan.count
        self._known = set(plan.slots) | set(plan.fixed)
        for place, tensor in plan.fixed.items():
            self._values[place] = tensor
        for place, slot in plan.slots.items():
            self._values[place] = self.memory.as_strided(slot.shape, slot.strides, skip + slot.offset)
        self._entries: list[tuple[Any, ...]] = []
        for todo in plan.todo:
            if isinstance(todo, Native):
                self._entries.append(self._kernel(plan, todo))
            elif not self._is_view(todo):
                self._entries.append((todo.run, todo.reads, todo.at, todo.second, ()))

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

    def _kernel(self, plan: Plan, todo: Native) -> tuple[Any, ...]:
        """No function, the launches, pointers to be put in place before them, outputs to be made for them."""
        step, program = todo.step, todo.step.program
        launches: list[tuple[Any, tuple[Any, ...]]] = []
        maps: list[Any] = [self._values[i] if i in self._known else i for i in todo.maps]
        if todo.averages:
            gates = torch.empty(step.size[0], 3, step.size[1])
            averages = [self._values[i] if i in self._known else self._copied(plan, i) for i in todo.averages]
            launches.append(gates_launch(todo.bound, averages, gates))
            maps.append(gates)
        results = [todo.at] + ([todo.second] if step.average else [])
        pointers = program._pointers()
        late, fresh = [], []
        for index, x in enumerate([*maps, *step.weights]):
            if isinstance(x, Tensor):
                pointers[index] = x.data_ptr()
            else:
                late.append((index, x, plan.strides[x]))
        for index, place in enumerate(results, len(maps) + len(step.weights)):
            if place in self._known:
                pointers[index] = self._values[place].data_ptr()
            elif place == todo.at:
                fresh.append((index, place, step.size, step.strides))
            else:
                fresh.append((index, place, (*step.size[:2], 1, 1), (step.size[1], 1, 1, 1)))
        launches.append((self._library.lc_run, (program._address, pointers, torch.get_num_threads())))
        return None, launches, pointers, late, fresh, maps

    def _copied(self, plan: Plan, place: int) -> Tensor:
        """A place for an average that PyTorch makes: it is copied there before the step, whose pointers cannot wait."""
        shape = plan.shapes[place]
        kept = torch.empty(shape[0], shape[1], 1, 1)
        self._entries.append((kept.copy_, (place,), place, -1, ()))
        return kept

    def run(self, given: Sequence[Tensor]) -> list[Tensor]:
        values = list(self._values)
        values[: len(given)] = given
        for run, *rest in self._entries:
            if run is None:
                launches, pointers, late, fresh, _ = rest
                for index, place, strides in late:
                    value = values[place]
                    if value.stride() != strides:
                        raise Moved
                    pointers[index] = value.data_ptr()
                for index, place, size, strides in fresh:
                    made = values[place] = torch.empty_strided(size, strides)
                    pointers[index] = made.data_ptr()
                for launch, arguments in launches:
                    if launch(*arguments):
                        raise MemoryError("a kernel found no memory for its scratch")
                continue
            reads, at, second, _ = rest
            made = run(*[values[i] for i in reads])
            if second < 0:
                values[at] = made
            else:
                values[at], values[second] = made
        return handed_out([values[i] for i in self.outputs], given, self._held)
