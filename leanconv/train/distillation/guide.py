"""A recipe's distillation: the teacher's part of a run's loss, and the block-wise phase before its first step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.runs.digest import of_model
from leanconv.train.data.batches import Batch, batches, mix
from leanconv.train.distillation.blocks import swapped_blocks
from leanconv.train.distillation.distill import Distillation, Targets
from leanconv.train.distillation.reconstruct import reconstruct_
from leanconv.train.processes import Processes
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe
from leanconv.train.setup import seed_everything


class Guide:
    """What a run learns from its teacher.

        loss = (1 - teacher_weight) · task + teacher_weight · soft targets + feature_weight · features

    Args:
        student: on its device; may be wrapped.
        teacher: of `load_teacher`; without one the loss is the task's.
    Attributes:
        teacher: its digest; "" without one.
        pending: whether the block-wise phase is still to be done.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, teacher: nn.Module | None) -> None:
        self.recipe, self._student, self._teacher = recipe, student, teacher
        self.teacher = of_model(teacher) if teacher is not None else ""
        self.pending = teacher is not None and recipe.blockwise_steps > 0
        self._made: Distillation | None = None
        if teacher is None:
            return
        if self.pending and not swapped_blocks(student, teacher):
            raise BadInput(
                f"recipe: blockwise_steps={recipe.blockwise_steps}: no layer of the model stands for a convolution of "
                "the teacher by its name: say blockwise_steps=0"
            )
        self._device = next((p.device for p in student.parameters()), torch.device("cpu"))
        teacher.to(self._device)
        if recipe.channels_last:
            teacher.to(memory_format=torch.channels_last)

    def targets(self, images: Tensor, *, bfloat16: bool = False) -> Targets | None:
        """What the teacher gives for a batch. `bfloat16`: the step computes in it, and so does the teacher."""
        if self._teacher is None:
            return None
        # Made here: after the block-wise phase, whose maps it would keep, and before the student is compiled.
        self._made = self._made or Distillation(
            self._student,
            self._teacher,
            temperature=self.recipe.temperature,
            output_weight=self.recipe.teacher_weight,
            feature_weight=self.recipe.feature_weight,
        )
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.amp)
        dtype = torch.bfloat16 if bfloat16 else half
        cast: AbstractContextManager[object] = torch.autocast(self._device.type, dtype) if dtype else nullcontext()
        with cast:
            return self._made.targets(images)

    def loss(self, task_loss: Tensor, logits: Tensor, targets: Targets | None) -> Tensor:
        """The run's loss of a batch whose task's loss is given."""
        if self._made is None or targets is None:
            return task_loss
        return (1 - self.recipe.teacher_weight) * task_loss + self._made.loss(logits, targets)

    def reconstruct_(
        self,
        batch_at: Callable[[int], Batch],
        on_device: Callable[..., Batch],
        processes: Processes,
        report: Reporter,
        on_step: Callable[[], object],
    ) -> None:
        """The block-wise phase: `blockwise_steps` of each block's own loss. Its table is shown.

        It saves nothing: a run that was stopped in it begins it again.

        Args:
            batch_at: gives the batch of a step; the phase takes those of the first steps.
            on_device: moves one to the device.
            on_step: called after each step; what it raises ends the phase.
        """
        if self._teacher is None:
            return
        steps = self.recipe.blockwise_steps
        seed_everything(mix(self.recipe.seed, -1, processes.rank))

        def shown(done: int) -> None:
            report.reconstructing(done, steps)
            on_step()

        with closing(batches(batch_at, 0, steps, workers=self.recipe.workers)) as coming:
            found = reconstruct_(
                self._student,
                self._teacher,
                (on_device(*batch)[0] for batch in coming),
                steps=steps,
                average=processes.mean if processes.count > 1 else None,
                on_step=shown,
                progress=False,
            )
        processes.share_buffers(self._student)
        self.pending = False
        report.say(f"blocks, each by its own loss:\n{found}")

    def close(self) -> None:
        """Remove the hooks from the student."""
        if self._made is not None:
            self._made.close()
