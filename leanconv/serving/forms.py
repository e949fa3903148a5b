"""Forms of a model on the engines: raced, opened, prepared and checked. Loaded only once an engine may pay."""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.failures import root_cause
from leanconv.deploy.verify import InFloat64, Reference
from leanconv.engine.candidate import ModelForm, missing
from leanconv.engine.candidates import CANDIDATES, EAGER, chosen
from leanconv.engine.optimize import optimize
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.serving.kept import Choice, Kept

# Engines of `auto`: those whose forms can be stored, so that the next process opens them at once.
RACERS = tuple(name for name, candidate in CANDIDATES.items() if candidate.opens is not None)
# What the runtimes of `--engine NAME` need to prepare a form.
_NEEDS = {"openvino": ("openvino",), "onnxruntime": ("onnx", "onnxscript", "onnxruntime")}


def check(engine: str) -> None:
    """Raise UnknownName for an unknown engine, BadInput for one that is not installed."""
    chosen([engine])
    if (needs := _NEEDS.get(engine)) and (why := missing(*needs)):
        raise BadInput(f"--engine {engine}: {why}; or say --engine auto")


def raced(model: nn.Module, x: Tensor, budget_s: float) -> Any:
    """The race of all engines whose forms can be stored. Raises BadInput as `optimize` does."""
    return optimize(model, x, engines=RACERS, budget_s=budget_s, progress=False)


def any_shape(engine: str) -> bool:
    """Whether an engine's form also runs inputs of other shapes."""
    return engine in CANDIDATES and CANDIDATES[engine].any_shape


def opened(kept: Kept, choice: Choice) -> ModelForm | None:
    """The stored engine, or None if its files are gone, changed or do not open."""
    opens = CANDIDATES[choice.engine].opens if choice.engine in CANDIDATES else None
    place = kept.place_of(choice)
    if opens is None or place is None:
        return None
    try:
        return opens(place, kept.shape)
    except Exception:  # a library's error for files of another version: the engine is prepared again
        return None


def agrees(form: ModelForm, model: nn.Module, x: Tensor, answer: Tensor) -> bool:
    """Whether a form gives the model's `answer` to `x`, by the rule of `optimize`."""
    try:
        return Reference(InFloat64(model), (x,), {}, answer).error(form(x)).passes
    except Exception:  # the form does not run on this shape, or on this machine
        return False


def prepared(model: nn.Module, x: Tensor, engine: str) -> ModelForm:
    """A form of one engine, verified as `optimize` does. Raises BadInput if there is none."""
    if engine == EAGER:
        return model
    candidate = CANDIDATES[engine]
    bench = Workbench(model, (x,), {}, torch.get_num_threads())
    if why := bench.obstacle or candidate.why_not(bench, None):
        raise BadInput(why)
    try:
        form = candidate.prepare(bench, None)
        trials = bench.verify(form)[0], bench.trials.later(form, None)
    except Exception as error:  # whatever an engine raises
        raise BadInput(f"it cannot run this model: {root_cause(error)}") from error
    for seen in trials:
        if not seen.passes:
            raise BadInput(f"it differs from the model: {seen.problem or f'{seen.relative:.1e} of the output'}")
    return form
