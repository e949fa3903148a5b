"""A recipe's distillation: the teacher's part of a run's loss, and the block-wise phase before its first step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext

import torch
from torch import Tensor, nn

from leanconv.train.data.batches import Batch, batches
from leanconv.train.distillation.distill import Distillation, Targets
from leanconv.train.distillation.reconstruct import reconstruct_
from leanconv.train.distillation.teacher import digest
from leanconv.train.processes import Processes
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe


class Guide:
    """What a run learns from its teacher.

        loss = (1 - teacher_weight) · task + teacher_weight · soft targets + feature_weight · features

    Args:
        student: on its device; may be wrapped.
        teacher: of `load_teacher`.
    Attributes: teacher: its `digest`.
    """

    def __init__(self, recipe: Recipe, student: nn.Module, teacher: nn.Module) -> None:
        self.recipe, self._student = recipe, student
        self.teacher = digest(teacher)
        self._device = next((p.device for p in student.parameters()), torch.device("cpu"))
        teacher.to(self._device)
        if recipe.channels_last:
            teacher.to(memory_format=torch.channels_last)
        self._distil = Distillation(
            student,
            teacher,
            temperature=recipe.temperature,
            output_weight=recipe.teacher_weight,
            feature_weight=recipe.feature_weight,
        )

    def targets(self, images: Tensor, *, bfloat16: bool = False) -> Targets:
        """What the teacher gives for a batch. `bfloat16`: the step computes in it, and so does the teacher."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.amp)
        dtype = torch.bfloat16 if bfloat16 else half
        cast: AbstractContextManager[object] = torch.autocast(self._device.type, dtype) if dtype else nullcontext()
        with cast:
            return self._distil.targets(images)

    def loss(self, task_loss: Tensor, logits: Tensor, targets: Targets) -> Tensor:
        """The run's loss of a batch whose task's loss is given."""
        return (1 - self.recipe.teacher_weight) * task_loss + self._distil.loss(logits, targets)

    def reconstruct_(
        self,
        batch_at: Callable[[int], Batch],
        on_device: Callable[..., Batch],
        processes: Processes,
        report: Reporter,
        on_step: Callable[[], object],
    ) -> None:
        """The block-wise phase: `blockwise_steps` of each block's own loss. Its table is shown.

        Args:
            batch_at: gives the batch of a step; the phase takes those of the first steps.
            on_device: moves one to the device.
            on_step: called after each step; what it raises ends the phase.
        """
        steps = self.recipe.blockwise_steps

        def shown(done: int) -> None:
            report.reconstructing(done, steps)
            on_step()

        with closing(batches(batch_at, 0, steps, workers=self.recipe.workers)) as coming:
            found = reconstruct_(
                self._student,
                self._distil.teacher,
                (on_device(*batch)[0] for batch in coming),
                steps=steps,
                average=processes.mean if processes.count > 1 else None,
                on_step=shown,
                progress=False,
            )
        processes.share_buffers(self._student)
        report.say(f"blocks, each by its own loss:\n{found}")

    def close(self) -> None:
        """Remove the hooks from the student."""
        self._distil.close()
