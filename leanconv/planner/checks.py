"""What a search is asked with, checked before minutes of measuring; and the file in which it keeps its state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from leanconv.errors import BadInput
from leanconv.planner.calibration import Calibration
from leanconv.planner.kept import Kept, default_state, digest, read_searches
from leanconv.planner.trial_swaps import WHOLE_STEPS, inits
from leanconv.running import tensors
from leanconv.runs.digest import of_model, of_tensors
from leanconv.version import __version__

FIT = "fit"  # the way to make weights that looks at images
_PLENTY, _MOST_SEED = 2**20, 2**63 - 1


def init_of(init: str | None) -> str:
    """How the weights of trials are made. Raises BadInput for what `apply_` does not know."""
    known = inits()
    if init is None:
        return FIT if FIT in known else "project"
    if init not in known:
        raise BadInput(f"init={init!r}: one of {', '.join(map(repr, known))}")
    return init


def check_numbers(images: int, shortlist: int, seed: int) -> None:
    """Raise BadInput unless all are whole numbers, of at least 1; a seed of at least 0."""
    for name, value, least in (("images", images, 1), ("shortlist", shortlist, 1), ("seed", seed, 0)):
        most = _MOST_SEED if name == "seed" else _PLENTY
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadInput(f"{name}={value!r}: a whole number, at least {least}")


def check_loss(loss: Any) -> None:
    """Raise BadInput for a loss that cannot be called."""
    if loss is not None and not callable(loss):
        raise BadInput(f"loss={loss!r}: a function (outputs, batch) -> the mean loss of the batch")


def check_state(state: str | Path | None) -> None:
    """Raise BadInput for a state file that no search wrote: it is somebody's, and it stays as it is."""
    if state is not None:
        read_searches(Path(state))


def check_weights(model: nn.Module) -> None:
    """Raise BadInput for NaN in the weights: every harm would be one."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        lazy = isinstance(tensor, UninitializedParameter | UninitializedBuffer)
        if not lazy and tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
            raise BadInput(f"{name} has NaN or infinite values in it: train or load the model first")


def state_of(
    model: nn.Module, calibration: Calibration, fitted: Sequence[Any], init: str, seed: int, state: str | Path | None
) -> Kept:
    """The state of a search like this one: of the same model, data, harm and way to make weights.

    fitted: the inputs that trials are fitted on; none where they look at no images.

    A loss counts as the same by the labels and the dense network's loss. Two losses may agree in that, so their harms
    are kept in a file that was named for them alone.
    """
    given = of_tensors(t for each in (*(b.inputs for b in calibration.batches), *fitted) for t in tensors(each))
    key = digest(of_model(model), given, calibration.kind, init, WHOLE_STEPS, seed, torch.__version__, __version__)
    if calibration.own_loss is not None:
        labels = of_tensors(t for batch in calibration.batches for t in tensors(batch.whole))
        key = digest(key, labels, f"{calibration.own_loss:.6g}")  # the last digits depend on the number of threads
        return Kept(None if state is None else Path(state), key)
    return Kept(default_state(f"harm-{key}"), key, cache=True) if state is None else Kept(Path(state), key)
