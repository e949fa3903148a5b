"""The shape of an untrained model's answer: finds a wrong number of classes before training starts."""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.running import evaluating, explained


def answer(model: nn.Module, inputs: Tensor) -> tuple[int, ...] | str:
    """The shape of the answer of `model` to `inputs` in eval mode; the answer's type if it is no tensor.

    Leaves buffers and each layer's mode alone. Raises BadInput where the model does not run.
    """
    with torch.no_grad(), evaluating(model), explained(f"{'x'.join(map(str, inputs.shape[1:]))} images"):
        found: Any = model(inputs)
    return tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__


def say_outputs(option: str, outputs: int) -> str:
    """What to do about a model of another number of outputs; `option`: its name in `leanconv:` networks."""
    return (
        f"leave {option}= out of model=, for it follows the data (smp: classes=, timm: num_classes=); or say "
        f"{option}={outputs} there. Code of one's own, and a run of other classes, must give {outputs}"
    )
