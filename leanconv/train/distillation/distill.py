"""Distillation: the loss by which a student learns from its teacher, in anybody's training loop.

    distil = Distillation(student, teacher)
    out = student(x)
    loss = task_loss(out, y) + distil(x, out)
    loss.backward()

The field's names: timm's `LogitDistillationTask` and `FeatureDistillationTask` in one. Source: `losses.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.measure.state import bare
from leanconv.running import Inputs, call
from leanconv.train.distillation.blocks import Features, paired
from leanconv.train.distillation.losses import ACTIVATIONS, feature_loss, soft_target_loss
from leanconv.train.distillation.taps import Taps


@dataclass(frozen=True)
class Targets:
    """What the teacher gives for a batch: its outputs, and its features by layer."""

    outputs: Any
    features: dict[str, list[Tensor]]


class Distillation:
    """The loss of a student against its teacher: soft targets for the outputs, squared error for features.

    The teacher is set to eval mode and runs without gradients; it is no part of the student. Make this before
    `torch.compile`'s first run of the student, whose program has the hooks in it. The teacher follows the autocast of
    its caller; losses are computed in float32 at least.

    Args:
        student: in training; may be wrapped for several processes or by torch.compile.
        teacher: on the same device.
        features: layers whose outputs are compared: "auto" takes the blocks around swapped layers (those of one name
            that are another convolution in the teacher), a list names layers of both, a dict student's -> teacher's;
            () none.
        temperature: of the soft targets; above 1 the small probabilities count more.
        output_weight, feature_weight: of the two parts. The second is the mean over features.
        activation: of the outputs: "softmax" over axis 1, "sigmoid" each, "auto" sigmoid where there is one.
        output: finds the logits in the model's answer, where that is no tensor: `lambda answer: answer["out"]`.
    Attributes: pairs: the student's layers that are compared -> the teacher's.
    Raises: BadInput for a teacher that is the student, shares weights with it or has weights that are not finite;
        UnknownName for a layer that is not there.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        features: Features = "auto",
        temperature: float = 2.0,
        output_weight: float = 1.0,
        feature_weight: float = 1.0,
        activation: str = "auto",
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        for name, value in (("output_weight", output_weight), ("feature_weight", feature_weight)):
            if not 0 <= value < math.inf:
                raise BadInput(f"{name}={value}: must be a number of at least 0")
        if not 0 < temperature < math.inf:
            raise BadInput(f"temperature={temperature}: must be a number above 0")
        if activation not in ACTIVATIONS:
            raise BadInput(f"activation={activation!r}: one of {', '.join(ACTIVATIONS)}")
        check_pair(student, teacher)
        self.teacher = teacher.eval()
        self.temperature, self.activation = temperature, activation
        self.output_weight, self.feature_weight = output_weight, feature_weight
        self._output = output or (lambda answer: answer)
        student, teacher = bare(student), bare(teacher)
        self.pairs = paired(student, teacher, features) if feature_weight else {}
        self._student, self._teacher = Taps(student, self.pairs), Taps(teacher, set(self.pairs.values()), always=True)

    def __call__(self, inputs: Inputs, outputs: Any) -> Tensor:
        """The loss of one batch, a tensor of one number.

        Args:
            inputs: what the student was called with: a tensor, a tuple of arguments, a dict of named ones.
            outputs: what it gave for them in its last forward pass. Features are kept of passes with gradients alone.
        Raises: BadInput for features or outputs of other shapes than the teacher's, or a student that did not run.
        """
        return self.loss(outputs, self.targets(inputs))

    @torch.no_grad()
    def targets(self, inputs: Inputs) -> Targets:
        """What the teacher gives for a batch: for a loop that uses it more than once."""
        if self.teacher.training:
            self.teacher.eval()
        return Targets(call(self.teacher, inputs), self._teacher.take())

    def loss(self, outputs: Any, targets: Targets) -> Tensor:
        """The loss of the student's last forward pass against the teacher's targets."""
        own, theirs = self._logits(outputs), self._logits(targets.outputs)
        total = own.new_zeros((), dtype=torch.float32 if own.dtype.itemsize < 4 else own.dtype)
        if self.output_weight:
            loss = soft_target_loss(own, theirs, temperature=self.temperature, activation=self.activation)
            total = total + self.output_weight * loss
        if self.pairs:
            total = total + self.feature_weight * self._feature_loss(self._student.take(), targets.features)
        return total

    def _feature_loss(self, own: dict[str, list[Tensor]], theirs: dict[str, list[Tensor]]) -> Tensor:
        losses: list[Tensor] = []
        for name, other in self.pairs.items():
            mine, targets = own.get(name, []), theirs.get(other, [])
            if not mine or len(mine) != len(targets):
                raise BadInput(
                    f"{name}: the student gave {len(mine)} tensors, the teacher {len(targets)}: call the student "
                    "with gradients before each call of Distillation, made before the student is compiled"
                )
            losses += [feature_loss(s, t, name=name) for s, t in zip(mine, targets, strict=True)]
        return torch.stack(losses).mean()

    def _logits(self, answer: Any) -> Tensor:
        found = self._output(answer)
        if not isinstance(found, Tensor):
            raise BadInput(
                f"the outputs are {type(found).__name__}, not a tensor: say where the logits are, like "
                'output=lambda answer: answer["out"]'
            )
        return found

    def close(self) -> None:
        """Remove the hooks from both models."""
        self._student.close()
        self._teacher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Distillation({type(bare(self.teacher)).__name__} as teacher, {len(self.pairs)} features)"


def check_pair(student: nn.Module, teacher: nn.Module) -> None:
    """Raise BadInput for a teacher that is the student, shares weights with it, or has weights that are not finite."""
    for model, whose in ((student, "student"), (teacher, "teacher")):
        if not isinstance(model, nn.Module):
            raise BadInput(f"the {whose} must be a torch.nn.Module, got {type(model).__name__}")
    if bare(student) is bare(teacher):
        raise BadInput("the teacher is the student: copy the model before the swap (teacher = copy.deepcopy(model))")
    theirs = {id(p) for p in teacher.parameters()}
    if shared := [name for name, p in bare(student).named_parameters() if id(p) in theirs]:
        raise BadInput(
            f"the teacher shares {len(shared)} weights with the student ({shared[0]}, ...): they would change while it "
            "teaches; copy the model before the swap (teacher = copy.deepcopy(model))"
        )
    check_finite(teacher)


def check_finite(teacher: nn.Module) -> None:
    """Raise BadInput for a teacher with a weight that is NaN or infinite."""
    for name, weight in bare(teacher).named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise BadInput(f"the teacher's weight {name} is not finite: take another teacher, or an earlier checkpoint")
    for name, tensor in bare(teacher).named_buffers():  # infinities may be meant, as in attention's masks
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise BadInput(f"the teacher's buffer {name} has NaN: take another teacher, or an earlier checkpoint")
