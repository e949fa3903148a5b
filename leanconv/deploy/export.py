"""`export`: write a model as an ONNX, OpenVINO or torch.export file and verify it, or leave no file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.copies import copied
from leanconv.deploy.axes import Dynamic, Sizes
from leanconv.deploy.calls import Frame
from leanconv.deploy.failures import root_cause
from leanconv.deploy.int8 import MAX_LOSS
from leanconv.deploy.int8.export import SUFFIXES, Int8, quantise
from leanconv.deploy.names import names_of
from leanconv.deploy.parity import (
    FORMATS,
    Check,
    Names,
    compared,
    measured,
    metrics_of,
    named_so,
    open_draft,
    open_int8,
    verify,
)  # fmt: skip
from leanconv.deploy.place import beside, move_into_place
from leanconv.deploy.program import (
    ONE_AT_A_TIME,
    capture,
    capture_flat,
    forget_guards,
    onnx_module,
    save_onnx,
    to_openvino,
)
from leanconv.deploy.result import Exported
from leanconv.deploy.verify import InFloat64, Reference, has_nan
from leanconv.errors import BadInput, LeanconvError, UnknownName
from leanconv.extras import needs
from leanconv.files import origin
from leanconv.running import Inputs, as_call, cloned, explained, has_lazy
from leanconv.text import is_utf8

# Advice for errors of torch.export that do not say what to do.
ADVICE = {
    "GuardOnDataDependent": "its forward decides by the values of a tensor, which a file cannot; ",
    "ConstraintViolation": "its forward fixes a size that should stay open: leave that axis out of dynamic; ",
}


@dataclass(frozen=True)
class Extras:
    """What goes with an export: the entry `leanconv` of the file's metadata, and text files beside it by name."""

    facts: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def export(
    model: nn.Module,
    inputs: Inputs,
    path: str | Path,
    *,
    dynamic: Sequence[str] = ("batch",),
    check: Check | None = None,
    dtype: torch.dtype | None = None,
    data: Any = None,
    max_loss: float = MAX_LOSS,
) -> Exported:
    """Write `model` (in eval mode, on the CPU) to `path`, but only if the file computes the same.

    Args:
        model: any module. `export` copies it and does not change it. For an optimised model, export its original.
        inputs: a tensor, a tuple of arguments or a dict of named ones. Sizes outside `dynamic` become the file's.
        path: `.onnx`, `.xml` (OpenVINO, with its `.bin`) or `.pt2` (torch.export).
        dynamic: the axes that stay dynamic: any of "batch", "height", "width". `export` verifies the file at the
            given sizes, at batches 1, 2, 5, and at several heights and widths. The values are the given
            ones and random ones: similar, bright, flat, large and small.
        check: `check(model_like) -> number or {name: number}`, called with the model and with the file as a module.
            The two may differ by 0.002.
        dtype: torch.int8 quantises the verified file: `.xml` by NNCF, `.onnx` by ONNX Runtime (QDQ).
        data: for torch.int8, calibration data as of `optimize`.
        max_loss: the largest loss of an int8 file: of what `check` measures (higher is better), or without `check` the
            relative squared error on `data`. Above it the error names the layers that cost most.
    Raises: ExportMismatch if the file differs from the model. BadInput if the model cannot be exported or `path` cannot
        be written. UnknownName for an unknown suffix or axis. MissingExtra. After an error nothing new is left at
        `path`, and an older file there is untouched.
    """
    if dtype not in (None, torch.int8):
        raise BadInput(f"dtype={dtype!r}: a file has the model's own type, or torch.int8; export(model.to(...), ...)")
    if dtype is None and (data is not None or max_loss != MAX_LOSS):
        raise BadInput(f"{'max_loss' if data is None else 'data'}: for int8 alone; pass dtype=torch.int8 too")
    int8 = None if dtype is None else Int8(data, max_loss)
    return export_call(model, Dynamic(*_on_cpu(*as_call(inputs)), dynamic), Path(path), check, int8=int8)


def export_call(
    model: nn.Module,
    call: Dynamic,
    path: Path,
    check: Check | None,
    extras: Extras | None = None,
    *,
    int8: Int8 | None = None,
) -> Exported:
    """`export` of a call that is already split, with `extras` in and beside the file."""
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in FORMATS.items())
        raise UnknownName(f"{path}: the suffix decides the format, and {path.suffix!r} is none; known: {known}")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file in it")
    if int8 is not None and path.suffix not in SUFFIXES:
        raise BadInput(f"{path}: int8 files are {' or '.join(SUFFIXES)}; give such a name, or leave int8 out")
    if not is_utf8(os.path.abspath(path)):  # ONNX's own error is unclear, and torch.export's writer aborts
        raise BadInput(f"{path}: the libraries that write it take names in UTF-8 alone; give another")
    # Tracing changes modules' classes while it runs. A model that another thread runs meanwhile would be traced too.
    with ONE_AT_A_TIME:
        return _checked_file(_plain_copy(model), call, path, check, extras or Extras(), int8)


def _checked_file(
    plain: nn.Module, call: Dynamic, path: Path, check: Check | None, extras: Extras, int8: Int8 | None
) -> Exported:
    """Run the model, write the file, open and compare it, quantise it if asked, then move it into place."""
    args, kwargs = call.frame.join(call.tensors)
    with torch.no_grad(), explained(f"inputs {call.given}"):
        answer = plain(*cloned(args), **cloned(kwargs))
    _exportable(answer, path)
    trace, looks = call.plan(plain)
    with beside(path) as folder:
        draft = folder / path.name
        names = _write(plain, call, trace, answer, draft, extras.facts)
        runtime = open_draft(plain, draft, answer)
        exact = InFloat64(plain)
        verified = tuple(verify(plain, exact, runtime, call, look, path) for look in looks)
        names = named_so(runtime, names, call, Reference(exact, args, kwargs, answer), path)
        metrics, lost = metrics_of(check, plain, runtime, path) if check is not None and int8 is None else {}, None
        del runtime  # the file must not stay mapped while it is moved
        if int8 is not None:
            opened = partial(open_int8, plain, draft, answer, names, call, looks)
            judged = None if check is None else partial(compared, check, measured(check, plain))
            lost, metrics = quantise(draft, plain, call, int8, opened, judged, extras.facts)
        for name, text in extras.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        files = move_into_place(folder, path)
    return Exported(path, FORMATS[path.suffix], files, call.dynamic, *names, verified, metrics, lost)


def _plain_copy(model: nn.Module) -> nn.Module:
    if getattr(model, "optimized_by_leanconv", False):
        raise BadInput("an optimised model belongs to this process and cannot be exported; export(model.original, ...)")
    model = getattr(model, "_orig_mod", model)  # the model inside torch.compile's wrapper
    scripted = next((name for name, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)), None)
    if scripted is not None:
        which = f"the model's layer {scripted!r}" if scripted else "the model"
        raise BadInput(f"{which} is TorchScript, which torch.export does not take; give what it was made from")
    if has_lazy(model):
        raise BadInput("the model has layers that wait for their first input to know their sizes; call it once first")
    return copied(model).cpu().eval().requires_grad_(False)


def _on_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tensors, frame = Frame.split((args, kwargs))
    moved, named = frame.join([tensor.detach().cpu() for tensor in tensors])
    return moved, named


def _exportable(answer: Any, path: Path) -> None:
    tensors = Frame.split(answer)[0]
    if not tensors:
        raise BadInput(f"the model gives no tensor but {type(answer).__name__}: nothing to export")
    if path.suffix != ".pt2" and any(t.dtype in (torch.bfloat16, torch.float64) for t in tensors):
        dtype = next(t.dtype for t in tensors if t.dtype in (torch.bfloat16, torch.float64))
        raise BadInput(
            f"{FORMATS[path.suffix]} does not compute in {str(dtype).removeprefix('torch.')} on a CPU;"
            " export(model.float(), ...), or write a .pt2"
        )
    text = next((c for _, c in Frame.split(answer)[1].constants if isinstance(c, str)), None)
    if path.suffix == ".pt2" and text is not None:
        raise BadInput(f"a torch.export file cannot give the text {text!r:.40} in the model's output; leave it out")
    if has_nan(answer):
        raise BadInput("the model's output has NaN in it: nothing can be verified against it; check its weights")


def _write(plain: nn.Module, call: Dynamic, trace: Sizes, answer: Any, draft: Path, facts: str) -> Names:
    """Write the draft. Returns the names of its inputs and outputs."""
    args, kwargs = call.call(trace)
    given = args[0] if len(args) == 1 and not kwargs else (kwargs if kwargs and not args else (args, kwargs))
    inputs = names_of(given, "input", prefix="input")
    outputs = names_of(answer, "output", prefix="output", taken=inputs)
    try:
        if draft.suffix == ".pt2":
            program = capture(plain, args, kwargs, call.axes)
            if call.any_size:
                forget_guards(program)
            said = {"leanconv.json": facts} if facts else {}
            torch.export.save(program, str(draft), extra_files={"origin.txt": origin(), **said})
        elif draft.suffix == ".onnx":
            onnx_module()  # a large model is not captured in vain
            program = capture_flat(plain, args, kwargs, call.axes)
            save_onnx(program, draft, inputs=inputs, outputs=outputs, axes=call.axes, facts=facts)
        else:
            with needs("openvino", "export"):
                import openvino
            converted = to_openvino(capture_flat(plain, args, kwargs, call.axes), inputs=inputs, outputs=outputs)
            converted.set_rt_info(origin(), ["origin"])
            if facts:
                converted.set_rt_info(facts, ["leanconv"])
            openvino.save_model(converted, str(draft), compress_to_fp16=False)
    except (LeanconvError, OSError):
        raise
    except Exception as error:
        raise BadInput(f"the model cannot become {FORMATS[draft.suffix]}: {_advised(error)}") from error
    return tuple(inputs), tuple(outputs)


def _advised(error: BaseException) -> str:
    line = root_cause(error)
    return next((advice for name, advice in ADVICE.items() if name in line.split(":")[0]), "") + line
