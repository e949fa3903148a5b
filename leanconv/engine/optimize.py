"""`optimize`: measure every engine on this device and return the fastest form, never slower than the given model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from leanconv.deploy.int8 import MAX_LOSS, Calibration, Metric
from leanconv.engine.budget import Budget
from leanconv.engine.candidate import Candidate
from leanconv.engine.candidates import chosen
from leanconv.engine.choices import Choices
from leanconv.engine.optimized import PLAIN, Optimized
from leanconv.engine.preparation import Preparation
from leanconv.engine.weights import Weights
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.kernels import Target
from leanconv.measure import label
from leanconv.measure.timing.latency import CLOCK_WORDS
from leanconv.progress import Progress
from leanconv.running import Inputs, as_call, explained, has_lazy


def optimize(
    model: nn.Module,
    inputs: Inputs,
    *,
    dtype: torch.dtype | None = None,
    data: Any = None,
    metric: Metric | None = None,
    max_loss: float = MAX_LOSS,
    engines: Sequence[str] | None = None,
    budget_s: float = 90,
    arithmetic: str | None = None,
    progress: bool = True,
) -> Optimized:
    """Fold the model, try every engine of this machine on it, and return the fastest that computes the same.

    Args:
        model: in eval mode, on the device it will run on. `optimize` does not change it.
        inputs: a tensor, a tuple of arguments or a dict of named ones. Use real shapes: they decide what is fastest.
        dtype: a second type that engines may compute in (torch.bfloat16, torch.int8). Inputs and outputs keep their
            own. For a model in bfloat16 or float16, `optimize` always tries some engines in float32 too.
        data: for torch.int8, inputs from which the ranges are taken and on which forms are judged: a tensor, a list of
            batches or a DataLoader. Shapes are those of `inputs` but for the number of rows; labels behind the inputs
            are left out. A few dozen pictures are read.
        metric: `metric(form) -> number`, higher is better, on data of your own (default: the forms' error on `data`).
        max_loss: the largest loss of an int8 form. Without `metric` it is the relative squared error
            Σ(y' - y)² / Σ(y - mean y)² of its answers y' against the model's y; with one, the metric's drop.
        engines: any of "eager" (as given, always tried), "folded", "channels_last", "fused", "openvino",
            "onnxruntime", "compile".
        budget_s: seconds. Engines in `dtype` are tried first. Engines that no longer fit are skipped, and the first
            line of the table names them.
        arithmetic: where the engine "fused" saves products with Strassen's and Winograd's algorithms (default: the
            environment variable LEANCONV_ARITHMETIC, else "lean"). "lean": in 1×1 convolutions, and in the 3×3 group
            convolutions of this project's operators. "fewest": in dense 3×3 convolutions too. "direct": nowhere, and
            groups are not merged to fill vectors, nor shortcuts made 1×1s; then NaN, infinity or a far larger number
            elsewhere in the map, or in another group, does not reach an output.
        progress: draw a bar on a terminal; a caller may draw one of its own.
    Returns: a module with the model's call signature and the table `.choices`. Inference only (no gradients).
    Raises: BadInput in training mode, for an unknown arithmetic, or if the model does not run on `inputs`; UnknownName
        for an unknown engine.

    A form is chosen only if it is correct and faster than the given model beyond noise.
    Correct: the largest error, relative to its channel or group, is at most 1e-4 in float32 and 5e-2 in bfloat16.
    If the model itself is far from float64, the limit rises to at most ten times that distance.
    The check uses the given inputs and also bright, flat, large and small ones.
    A form in int8 is correct if its loss on `data` is at most `max_loss`. The table has both figures.
    Faster: all forms are timed in turns, then the best ones once more. Threads: `torch.get_num_threads()`.
    Where a core is free, another process compiles ahead for "compile". It stands still while forms are timed.
    """
    candidates = chosen(engines)
    target = None if arithmetic is None else Target(arithmetic=arithmetic)
    _check(model, dtype, budget_s)
    _check_int8(dtype, data, metric, max_loss)
    args, kwargs = _plain(*as_call(inputs))
    budget = Budget(budget_s)
    weights = Weights(model)
    bench = _bench(model, args, kwargs, target)
    if dtype is torch.int8:
        bench.calibration = Calibration(model, inputs, data, metric=metric, max_loss=max_loss)
    variants = _variants(candidates, dtype, bench)
    with Progress("optimize", 1 + len(variants), visible=progress) as bar:
        preparation = Preparation(bench, budget, variants, first=dtype)
        with preparation.schedule.working_ahead():
            while preparation.prepare(bar):
                bar.show("measuring")
                winner = preparation.race(bar.part)
    shape = bench.tensors[0].shape if bench.tensors else None
    title = f"{label(bench.device, dtype=bench.dtype, shape=shape)}, {CLOCK_WORDS[bench.clock]}"
    folds = len(bench.fold_report.done) if "_folding" in bench.__dict__ else 0
    blocks = preparation.blocks(winner)
    missed, int8 = preparation.missed(), preparation.explain_int8()
    choices = Choices(preparation.rows, title, folds, budget.spent, blocks, budget_s, missed, int8)
    weights.settle()
    again = partial(
        optimize, model, dtype=dtype, data=data, metric=metric, max_loss=max_loss, engines=(winner.row.engine,),
        budget_s=budget_s, arithmetic=arithmetic,
    )  # fmt: skip
    return Optimized(
        model,
        choices,
        (args, kwargs),
        winner.form,
        any_shape=winner.any_shape,
        dtype=winner.dtype,
        fallback=preparation.fallback(),
        again=again,
        weights=weights,
        calibration=bench.calibration,
    )


def _check(model: nn.Module, dtype: torch.dtype | None, budget_s: float) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"optimize takes a torch.nn.Module, got {type(model).__name__}")
    if getattr(model, "optimized_by_leanconv", False):
        raise BadInput("the model is optimised already; optimize(model.original, ...) starts again")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"its layer {training!r} is" if training else "it is"
        raise BadInput(f"optimize needs a model in eval mode, and {where} in training mode; call model.eval() first")
    if has_lazy(model):
        raise BadInput("the model has lazy layers that know no sizes yet: call it once before optimize")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype is torch.int8)):
        raise BadInput(f"dtype={dtype!r}: must be a floating-point type, for example torch.bfloat16, or torch.int8")
    if not budget_s > 0:
        raise BadInput(f"budget_s={budget_s}: must be more than 0 seconds")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise BadInput("optimize was called under torch.autocast; leave it, and pass dtype=torch.bfloat16 instead")


def _check_int8(dtype: torch.dtype | None, data: Any, metric: Metric | None, max_loss: float) -> None:
    """Raises BadInput for arguments that have no effect without int8."""
    given = {"data": data is not None, "metric": metric is not None, "max_loss": max_loss != MAX_LOSS}
    named = [name for name, there in given.items() if there]
    if named and dtype is not torch.int8:
        raise BadInput(f"{' and '.join(named)}: for int8 alone; pass dtype=torch.int8 too")


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the call with plain tensors: dense and with the negative bit resolved."""

    def plain(tensor: Tensor) -> Tensor:
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
            what = type(tensor).__name__ if type(tensor) not in PLAIN else str(tensor.layout)
            raise BadInput(f"an input is a tensor of the kind {what}; optimize takes plain, dense ones")
        return tensor.resolve_neg()

    call: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, plain, (args, kwargs))
    return call


def _bench(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target | None) -> Workbench:
    with explained("these inputs"):
        bench = Workbench(model, args, kwargs, torch.get_num_threads(), target)
    if any(not tensor.numel() for tensor in bench.tensors):
        raise BadInput(f"an input is empty ({tuple(bench.tensors[0].shape)}): give at least one sample to measure on")
    return bench


def _variants(
    candidates: Sequence[Candidate], dtype: torch.dtype | None, bench: Workbench
) -> list[tuple[Candidate, torch.dtype | None]]:
    """List every engine in the model's own dtype, then in the second dtype that the caller allows.

    If the model computes in half precision, some engines run in float32 too. It is more exact and may be faster.
    """
    dtypes = [None] if dtype in (None, bench.dtype) else [None, dtype]
    found = [(candidate, each) for each in dtypes for candidate in candidates]
    if bench.half and torch.float32 not in dtypes:
        found += [(candidate, torch.float32) for candidate in candidates if candidate.widens]
    return found
