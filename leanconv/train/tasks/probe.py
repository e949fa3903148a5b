"""What a model answers before it is trained: the first batch's sizes, so that a wrong number of classes is said."""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput, LeanconvError, error_line


@torch.no_grad()
def answer(model: nn.Module, inputs: Tensor) -> tuple[int, ...] | str:
    """The shape of what `model` gives for `inputs` in eval mode, or its type where that is no tensor.

    Leaves buffers and mode alone. Raises BadInput where the model does not run.
    """
    training = model.training
    try:
        found: Any = model.eval()(inputs)
    except LeanconvError:
        raise
    except Exception as error:
        raise BadInput(
            f"the model does not run on {'x'.join(map(str, inputs.shape[1:]))} images: {error_line(error)}"
        ) from error
    finally:
        model.train(training)
    return tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
