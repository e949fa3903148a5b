"""Convert a module to a program with torch.export, and that program to ONNX or OpenVINO."""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from leanconv.deploy.calls import FlatModel, Frame
from leanconv.deploy.names import name_onnx, name_openvino
from leanconv.extras import needs
from leanconv.files import origin

# tensor index in the call -> {dimension: axis name}
Axes = Mapping[int, Mapping[int, str]]
# torch.export, its loader, the converters and `quiet` change process-wide state while they run.
ONE_AT_A_TIME = threading.RLock()


@torch.no_grad()
def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    axes: Axes | None = None,
    *,
    fixable: bool = False,
) -> ExportedProgram:
    """Capture the model as a graph. The dimensions in `axes` stay dynamic, all other sizes are the example's.

    A model may read the number of a dynamic dimension. With `fixable`, that dimension becomes fixed; otherwise
    torch.export raises.
    """
    tensors = Frame.split((args, dict(kwargs)))[0]
    dynamic, dim = None, torch.export.Dim.AUTO if fixable else torch.export.Dim.DYNAMIC
    if axes and any(axes.values()):
        dynamic = torch.export.ShapesCollection()
        for index, dims in axes.items():
            if dims:
                dynamic[tensors[index]] = dict.fromkeys(dims, dim)
    with quiet():
        return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic, strict=False)


def capture_flat(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    axes: Axes | None = None,
    *,
    fixable: bool = False,
) -> ExportedProgram:
    """Like `capture`, but the program takes and returns flat tensors, as ONNX and OpenVINO require."""
    tensors, frame = Frame.split((args, dict(kwargs)))
    return capture(FlatModel(model, frame).eval(), tuple(tensors), {}, axes, fixable=fixable)


def onnx_module() -> Any:
    """The module `onnx`. Raises MissingExtra without it, or without what torch.onnx needs beside it."""
    with needs("onnx", "export"):
        import onnx
    with needs("onnxscript", "export"):
        import onnxscript  # noqa: F401
    return onnx


def forget_guards(program: ExportedProgram) -> None:
    """Take the conditions on sizes from a program of a module that takes every size.

    torch.export writes down what held at the traced size: that no inner size is 1, that the picture needed padding. Its
    graph computes the same without, which the caller verifies at sizes where they do not hold.
    """
    from torch.utils._sympy.value_ranges import ValueRanges  # it imports SymPy, which `predict` can do without

    program._guards_code.clear()
    for symbol, found in list(program.range_constraints.items()):
        program.range_constraints[symbol] = ValueRanges(1, found.upper)


def save_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Axes | None = None,
    facts: str = "",
) -> None:
    """Write a flat program as ONNX, with weights over 2 GB in `PATH.data`. Raises MissingExtra without onnx."""
    onnx = onnx_module()
    with quiet():
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
        if converted is None:
            raise RuntimeError("torch.onnx returned no program")
        name_onnx(converted.model.graph, inputs, outputs)
        _name_axes(converted.model.graph, axes or {})
        converted.model.metadata_props["origin"] = origin()
        if facts:
            converted.model.metadata_props["leanconv"] = facts
        converted.save(str(path))
    onnx.checker.check_model(str(path))


def to_openvino(program: ExportedProgram, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Any:
    """Convert a flat program to an `openvino.Model`, and name its ports if names are given. Raises MissingExtra."""
    with needs("openvino", "export"):
        import openvino
    with quiet(), _apart(program):
        model = openvino.convert_model(program)
    if outputs:
        name_openvino(model, dict(zip(input_order(program), inputs, strict=True)), outputs)
    return model


@contextmanager
def _apart(program: ExportedProgram) -> Iterator[None]:
    """Make every output a separate tensor, as OpenVINO's converter demands. Restore the program afterwards."""
    graph, output = program.graph, program.graph.output_node()
    before, copies = output.args, []
    if len(output.args[0]) == 1:
        yield
        return
    with graph.inserting_before(output):
        for node in output.args[0]:
            order = list(range(node.meta["val"].dim()))
            copies.append(graph.call_function(torch.ops.aten.permute.default, (node, order)))
            copies[-1].meta = dict(node.meta)
    try:
        output.args = (tuple(copies),)
        yield
    finally:
        output.args = before
        for node in copies:
            graph.erase_node(node)


def input_order(program: ExportedProgram) -> list[str]:
    """Return the names of a flat program's inputs in the order of a call."""
    return [str(name) for name in program.graph_signature.user_inputs]


def _name_axes(graph: Any, axes: Axes) -> None:
    """Replace torch's symbols (s77) by `batch`, `height`, `width` in the shapes of inputs, outputs and inner values."""
    words: dict[str, str] = {}
    for index, dims in axes.items():
        for dim, name in dims.items():
            if index < len(graph.inputs):
                symbol = str(graph.inputs[index].shape[dim])
                if re.fullmatch(r"s\d+", symbol):
                    words[symbol] = name if name not in words.values() else f"{name}{index}"
    between = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *between):
        if value.shape is not None and value.shape.frozen:
            value.shape = value.shape.copy(frozen=False)
        for dim, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[dim] = re.sub(r"s\d+", lambda found: words.get(found[0], found[0]), size.value)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what PyTorch prints while it exports, loads or converts. Other threads wait here.

    Progress lines, graph dumps and deprecation warnings are for the authors of the converters. Errors are still
    raised, and every exported file is verified number by number.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx")]
    with ONE_AT_A_TIME:
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
