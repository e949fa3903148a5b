"""Compare a written file with its model: names, numbers at every size, the task metric."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.deploy.axes import GIVEN_VALUES, Dynamic, Look, Sizes
from leanconv.deploy.calls import Frame
from leanconv.deploy.failures import first_line
from leanconv.deploy.int8.calibration import relative_squared_error
from leanconv.deploy.result import METRIC_TOLERANCE, Verified
from leanconv.deploy.runtimes import Runtime, open_file
from leanconv.deploy.verify import InFloat64, Reference, has_nan
from leanconv.errors import BadInput, ExportMismatch, LeanconvError, error_line
from leanconv.probes import LIKE
from leanconv.running import cloned

FORMATS = {".onnx": "ONNX", ".xml": "OpenVINO", ".pt2": "torch.export"}
Check = Callable[[nn.Module], float | Mapping[str, float]]
Names = tuple[tuple[str, ...], tuple[str, ...]]  # names of inputs, names of outputs


def open_draft(plain: nn.Module, draft: Path, answer: Any) -> Runtime:
    tensors, frame = Frame.split(answer)
    try:
        run = open_file(draft).run
    except BadInput as error:
        why = str(error).removeprefix(f"{draft}: ").replace(str(draft), draft.name)
        raise ExportMismatch(f"the {FORMATS[draft.suffix]} file does not load; nothing was written: {why}") from error
    return Runtime(run, outputs=frame, dtypes=[t.dtype for t in tensors], like=plain)


def open_int8(
    plain: nn.Module, draft: Path, answer: Any, names: Names, call: Dynamic, looks: Sequence[Look]
) -> Runtime:
    """Open an int8 file. Raises ExportMismatch if it has other names, or does not run at all sizes."""
    runtime = open_draft(plain, draft, answer)
    if (found := (tuple(runtime.run.inputs), tuple(runtime.run.outputs))) != names:
        raise ExportMismatch(f"{draft.name} in int8 has the names {found}, not {names}; nothing was written")
    for sizes, kinds in looks:
        args, kwargs, expected = _asked(plain, call, sizes, kinds[0])
        try:
            given = runtime(*args, **kwargs)
        except Exception as error:
            line = first_line(error)
            raise ExportMismatch(
                f"{draft.name} in int8 does not run at {sizes}: {line}; nothing was written"
            ) from error
        if not math.isfinite(relative_squared_error(*(Frame.split(each)[0] for each in (expected, given)))):
            raise ExportMismatch(f"{draft.name} in int8 gives other shapes or NaN at {sizes}; nothing was written")
    return runtime


def named_so(runtime: Runtime, names: Names, call: Dynamic, model: Reference, path: Path) -> Names:
    """Return the names in the file. Raises ExportMismatch if a name is wrong or leads to the wrong tensor."""
    run = runtime.run
    found = tuple(run.inputs), tuple(run.outputs)
    if not runtime.flat:  # a torch.export program has its own names and the model's call signature
        return found
    if found != names:
        raise ExportMismatch(f"{path.name} has the names {found}, not {names}; nothing was written")
    given = run.by_name(dict(zip(names[0], call.tensors, strict=True)))
    seen = model.error(runtime.joined([given[name] for name in names[1]]))
    if not seen.passes:
        raise ExportMismatch(f"{path.name}: outputs asked for by their names differ from the model's: {seen}")
    return found


def verify(plain: nn.Module, exact: InFloat64, runtime: Runtime, call: Dynamic, look: Look, path: Path) -> Verified:
    sizes, kinds = look
    errors = []
    for kind in kinds:
        args, kwargs, expected = _asked(plain, call, sizes, kind)
        try:
            found = runtime(*args, **kwargs)
        except Exception as error:
            raise ExportMismatch(
                f"{path.name} does not run at {sizes}, which the model takes: {first_line(error)}; nothing was written"
            ) from error
        seen = Reference(exact, args, kwargs, expected).error(found)
        if not seen.passes:
            what = seen.problem or f"{seen.relative:.1e} of the output"
            raise ExportMismatch(
                f"{path.name} differs from the model at {sizes}, {kind}: {what} (allowed {seen.allowed:.1e});"
                " nothing was written"
            )
        errors.append(seen)
    worst = max(errors, key=lambda error: error.excess)
    return Verified(sizes, worst.absolute, worst.relative, worst.allowed)


def _asked(plain: nn.Module, call: Dynamic, sizes: Sizes, kind: str) -> tuple[Any, Any, Any]:
    """Return arguments and the model's answer. If the model fails on this kind of values, use similar ones (LIKE)."""
    args, kwargs = call.call(sizes, kind)
    usual, expected = kind in (GIVEN_VALUES, LIKE), None
    try:
        with torch.no_grad():
            expected = plain(*cloned(args), **cloned(kwargs))
    except Exception:
        if usual:
            raise
    if usual or (expected is not None and not has_nan(expected)):
        return args, kwargs, expected
    return _asked(plain, call, sizes, LIKE)


def metrics_of(check: Check, plain: nn.Module, runtime: Runtime, path: Path) -> dict[str, tuple[float, float]]:
    """Return the task metrics of the model and of the file. Raises ExportMismatch if they differ."""
    found = compared(check, measured(check, plain), runtime)
    for name, (a, b) in found.items():
        if not (abs(a - b) <= METRIC_TOLERANCE):  # a NaN on either side must not pass
            raise ExportMismatch(
                f"{path.name}: {name} is {b:.4f}, the model's {a:.4f} (allowed difference {METRIC_TOLERANCE});"
                " nothing was written"
            )
    return found


def compared(check: Check, ours: Mapping[str, float], runtime: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> (the model's, the file's); NaN where one of the two has no such metric."""
    if not ours:
        raise BadInput("check gave no number for the model, so nothing was compared; return one, or {name: number}")
    theirs, missing = measured(check, runtime), float("nan")
    return {name: (ours.get(name, missing), theirs.get(name, missing)) for name in {**ours, **theirs}}


def measured(check: Check, form: nn.Module) -> dict[str, float]:
    """What `check` gives for the model or a file, by name. Raises BadInput if it fails: it is the user's code."""
    try:
        value = check(form)
    except LeanconvError:
        raise
    except Exception as error:
        raise BadInput(f"check failed: {error_line(error, of_function=True)}") from error
    return _named(value)


def _named(value: float | Mapping[str, float]) -> dict[str, float]:
    named = value if isinstance(value, Mapping) else {"metric": value}
    try:
        return {name: float(number) for name, number in named.items()}
    except (TypeError, ValueError) as error:
        raise BadInput(f"check gave {value!r:.80}; return a number, or {{name: number}}") from error
