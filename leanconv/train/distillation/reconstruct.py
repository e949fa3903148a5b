"""Block-wise reconstruction: each block of a swapped model learns what the same block of the original gives.

All blocks learn side by side in one forward pass. A block's input is detached, so that its loss reaches its own weights
alone: the memory is that of one block, and no block waits for those behind it.
Source: Li et al. 2021, BRECQ, arXiv:2102.05426 (blocks, not layers); Li et al. 2020, DNA, arXiv:1911.13053 (at once).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from leanconv.errors import BadInput, Diverged
from leanconv.measure.state import bare
from leanconv.progress import tracked
from leanconv.running import Inputs, call, cloned, tensors, to_eval_
from leanconv.table import table
from leanconv.train.distillation.blocks import Features, paired
from leanconv.train.distillation.distill import check_pair
from leanconv.train.distillation.losses import feature_loss
from leanconv.train.step.modes import dropout_off

SOURCES = ("student", "teacher")


@dataclass(frozen=True)
class Block:
    """A block, and its loss (`feature_loss`: 1 is the variance of the teacher's output) in the first and last step."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Reconstructed:
    """What `reconstruct_` did, block by block."""

    blocks: tuple[Block, ...]
    steps: int
    seconds: float

    def __str__(self) -> str:
        rows = [[each.name, f"{each.before:.4g}", f"{each.after:.4g}"] for each in self.blocks]
        note = [
            f"{self.steps} steps, {self.seconds:.1f} s. Squared error of a block's output over its variance, in the "
            "first step and in the last."
        ]
        return table(["block", "before", "after"], rows, note=note)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def reconstruct_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Inputs] | Tensor,
    *,
    steps: int = 100,
    lr: float = 1e-3,
    blocks: Features = "auto",
    inputs: str = "student",
    average: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int], object] | None = None,
    progress: bool = True,
) -> Reconstructed:
    """Train the student's blocks in place, each by its own loss against the teacher's; Adam, a cosine down to 0.

    Labels are not needed. Parameters outside the blocks and frozen ones stay as they are. The blocks run in train mode
    (their BatchNorms follow the batches) without dropout; modes are restored.

    Args:
        teacher: the original, on the same device; set to eval mode.
        batches: inputs as the models are called: tensors, tuples of arguments, dicts of named ones. Begun again where
            they end before `steps`; a tensor is one batch.
        blocks: as `features` of `Distillation`.
        inputs: of a block: "student": what the blocks before it, as they are now, give; "teacher": what it meets in
            the original.
        average: of gradients over several processes.
        on_step: called with the steps done after each; what it raises ends the work there.
        progress: draw a bar on a terminal.
    Returns: the loss of each block in the first and the last step.
    Raises: BadInput where there is no block or no batch, for a teacher that is the student or not finite, for outputs
        of other shapes; Diverged for a loss that is not finite.
    """
    if not isinstance(steps, int) or steps < 1 or not 0 < lr < math.inf:
        raise BadInput(f"steps={steps}, lr={lr}: a whole number of steps, at least one, with a rate above 0")
    if inputs not in SOURCES:
        raise BadInput(f"inputs={inputs!r}: one of {', '.join(SOURCES)}")
    check_pair(student, teacher)
    student, teacher = bare(student), bare(teacher.eval())
    pairs = paired(student, teacher, blocks)
    if not pairs:
        raise BadInput("no layer of the student is another convolution than the teacher's of that name: name blocks=")
    work = _Work(student, teacher, pairs, from_teacher=inputs == "teacher")
    optimizer = torch.optim.Adam(work.parameters, lr=lr) if work.parameters else None
    if optimizer is None:
        raise BadInput(f"the blocks have no parameter that may change ({', '.join(pairs)}): unfreeze some")
    begun = time.perf_counter()
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    modes = [(module, module.training) for module in student.modules()]
    try:
        for done, batch in enumerate(tracked(_repeated(batches, steps), "blocks", progress=progress, count=steps)):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done / steps))
            last = work.step(batch, average)
            first = first or last
            optimizer.step()
            if on_step:
                on_step(done + 1)
    finally:
        for module, mode in modes:
            module.training = mode
        optimizer.zero_grad()
    rows = tuple(Block(name, first[name], last[name]) for name in last)
    return Reconstructed(rows, steps, time.perf_counter() - begun)


class _Work:
    """The models of one reconstruction, and its step: gradients of every block's own loss."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: dict[str, str], *, from_teacher: bool) -> None:
        self.student, self.teacher, self.from_teacher = student, teacher, from_teacher
        self.blocks = {name: student.get_submodule(name) for name in pairs}
        self.originals = {name: teacher.get_submodule(other) for name, other in pairs.items()}
        own = {id(p): p for block in self.blocks.values() for p in block.parameters() if p.requires_grad}
        self.parameters: list[nn.Parameter] = list(own.values())
        self.losses: dict[str, float] = {}

    def step(self, batch: Inputs, average: Callable[[Tensor], Tensor] | None) -> dict[str, float]:
        """The loss of each block in the order in which they run; gradients are left in the parameters."""
        self.losses = {}
        for parameter in self.parameters:
            parameter.grad = None
        to_eval_(self.student)
        for block in self.blocks.values():
            block.train()
        with torch.no_grad(), dropout_off(self.student):
            met = self._original(batch)
            if self.from_teacher:
                for name, calls in met.items():
                    for arguments, named, targets in calls:
                        with torch.enable_grad():
                            self._learn(name, self.blocks[name](*arguments, **named), targets)
            else:
                self._through_student(batch, met)
        if average:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad = average(parameter.grad)
        if bad := next((name for name, loss in self.losses.items() if not math.isfinite(loss)), ""):
            raise Diverged(f"the loss of block {bad} is not finite: try a smaller lr, or fewer steps")
        return self.losses

    def _original(self, batch: Inputs) -> dict[str, list[Any]]:
        """What each block of the teacher takes and gives, in the order of the calls. Later layers may write into it."""
        met: dict[str, list[Any]] = {}
        taken: dict[str, Any] = {}

        def before(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: Any, named: Any) -> None:
                taken[name] = cloned((arguments, named)) if self.from_teacher else ((), {})

            return hook

        def after(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                met.setdefault(name, []).append((*taken.pop(name), [t.clone() for t in _maps(output)]))

            return hook

        handles: list[Any] = []
        for name, original in self.originals.items():
            handles.append(original.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(original.register_forward_hook(after(name)))
        try:
            call(self.teacher, batch)
        finally:
            for handle in handles:
                handle.remove()
        return met

    def _through_student(self, batch: Inputs, met: dict[str, list[Any]]) -> None:
        """The student's own forward pass, with gradients inside its blocks alone."""
        handles: list[Any] = []

        def before(module: nn.Module, arguments: Any) -> None:
            torch.set_grad_enabled(True)  # the inputs carry no graph: outside blocks nothing is recorded

        def after(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
                if not met.get(name):
                    raise BadInput(f"{name}: the student calls it more often than the teacher")
                self._learn(name, output, met[name].pop(0)[2])
                torch.set_grad_enabled(False)
                return _detached(output)

            return hook

        for name, block in self.blocks.items():
            handles.append(block.register_forward_pre_hook(before))
            handles.append(block.register_forward_hook(after(name)))
        try:
            call(self.student, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _learn(self, name: str, output: Any, targets: Sequence[Tensor]) -> None:
        """Add the gradient of one block's loss. By autograd.grad: hooks of several processes' wrappers see nothing."""
        found = _maps(output)
        if not found or len(found) != len(targets):
            raise BadInput(f"{name}: the student gives {len(found)} tensors, the teacher {len(targets)}")
        losses = [feature_loss(mine, target, name=name) for mine, target in zip(found, targets, strict=True)]
        loss = torch.stack(losses).mean()
        self.losses[name] = self.losses.get(name, 0.0) + float(loss.detach())
        own = [p for p in self.blocks[name].parameters() if p.requires_grad]
        if not loss.requires_grad:
            return
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _maps(output: Any) -> list[Tensor]:
    return [t for t in tensors(output) if t.is_floating_point()]


def _detached(output: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.detach(), output)


def _repeated(batches: Iterable[Inputs] | Tensor, steps: int) -> Iterator[Inputs]:
    """So many batches, from the beginning again where they end. Raises BadInput where they cannot begin again."""
    source: Iterable[Inputs] = [batches] if isinstance(batches, Tensor) else batches
    given = 0
    while given < steps:
        before = given
        for batch in source:
            yield batch
            given += 1
            if given == steps:
                return
        if given == before:
            raise BadInput(f"batches end after {given}, {steps} steps need more: give a list or a DataLoader")
