"""The losses of distillation: soft targets for logits and masks, normalised squared error for features.

    softmax   T² · mean over images (and pixels) of KL(softmax(t/T) ‖ softmax(s/T))
    sigmoid   T² · mean over all outputs of KL(Bernoulli(σ(t/T)) ‖ Bernoulli(σ(s/T)))
    features  mean over channels c of mean (s - t)² / (var_c(t) + FLOOR · mean t²)

s, t: student's and teacher's values, T: temperature. The factor T² keeps the gradient's size as T grows.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2; features as in Romero et al. 2014, arXiv:1412.6550, normalised.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput

ACTIVATIONS = ("auto", "softmax", "sigmoid")
# A channel that is almost constant in the teacher has no variance to divide by.
FLOOR = 0.05
_TINY = 1e-12


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, activation: str = "auto") -> Tensor:
    """T² times the mean KL divergence of the student's outputs from the teacher's; 0 where they agree.

    Args:
        student, teacher: logits, `N K` of a classifier or `N K H W` of masks; 16-bit ones are computed in float32.
        temperature: T, above 0.
        activation: what turns logits into probabilities: "softmax" over K, "sigmoid" for each output by itself, "auto":
            sigmoid for one output, else softmax.
    Raises: BadInput for logits of different shapes.
    """
    _same_shape("the student's outputs", student, teacher)
    s, t = _full(student) / temperature, _full(teacher) / temperature
    if activation == "sigmoid" or (activation == "auto" and s.shape[1:2] in ((), (1,))):
        p = t.sigmoid()
        loss = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    else:
        loss = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True).sum(1)
    return loss.mean() * temperature**2


def feature_loss(student: Tensor, teacher: Tensor, *, name: str = "the feature") -> Tensor:
    """The mean squared error of a feature, each channel divided by the teacher's variance in this batch.

    Args:
        student, teacher: `N C ...` maps or vectors, or `N L C` tokens.
        name: of the layer, for the message.
    Raises: BadInput for features of different shapes.
    """
    _same_shape(name, student, teacher)
    s, t = _full(student), _full(teacher)
    channel = 2 if t.dim() == 3 else min(1, t.dim() - 1)
    others = [axis for axis in range(t.dim()) if axis != channel]
    # Means of channels alone: torch's own variance and a division of whole maps read the maps more often. Rounding of
    # the variance is below the floor.
    square, error = t.square(), (s - t).square()
    variance = torch.zeros_like(t)
    if others:
        square, error = square.mean(others), error.mean(others)
        variance = (square - t.mean(others).square()).clamp_min(0)
    return (error / (variance + FLOOR * square.mean() + _TINY)).mean()


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise BadInput(
            f"{name}: the student gives {tuple(student.shape)}, the teacher {tuple(teacher.shape)}: both must have one "
            "shape; leave that layer out of features=, or take a teacher of the same classes and sizes"
        )
