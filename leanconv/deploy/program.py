"""From a module to a program: torch.export, then ONNX or OpenVINO from that one program."""

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
# torch.export, its loader and the converters change the whole process while they run, as `quiet` does.
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
    """The model as a graph; the dimensions named in `axes` stay open, every other size is fixed to the example's.

    A model that asks for the number behind an open dimension is refused, or, where it is `fixable`, has that one fixed.
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
    """Likewise, but the program takes and gives its tensors one after another, as ONNX and OpenVINO need it."""
    tensors, frame = Frame.split((args, dict(kwargs)))
    return capture(FlatModel(model, frame).eval(), tuple(tensors), {}, axes, fixable=fixable)


def onnx_module() -> Any:
    """The module `onnx`. Raises MissingExtra without it, or without what torch.onnx needs beside it."""
    with needs("onnx", "export"):
        import onnx
    with needs("onnxscript", "export"):
        import onnxscript  # noqa: F401
    return onnx


def save_onnx(
    program: ExportedProgram, path: Path, *, inputs: Sequence[str], outputs: Sequence[str], axes: Axes | None = None
) -> None:
    """Write a flat program as ONNX; weights over 2 GB go to `PATH.data` beside it. Raises MissingExtra without onnx."""
    onnx = onnx_module()
    with quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        if made is None:
            raise RuntimeError("torch.onnx gave no program")
        name_onnx(made.model.graph, inputs, outputs)
        _name_axes(made.model.graph, axes or {})
        made.model.metadata_props["origin"] = origin()
        made.save(str(path))
    onnx.checker.check_model(str(path))


def to_openvino(program: ExportedProgram, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Any:
    """A flat program as an `openvino.Model`; its ports are named where names are given. Raises MissingExtra."""
    with needs("openvino", "export"):
        import openvino
    with quiet(), _apart(program):
        model = openvino.convert_model(program)
    if outputs:
        name_openvino(model, dict(zip(input_order(program), inputs, strict=True)), outputs)
    return model


@contextmanager
def _apart(program: ExportedProgram) -> Iterator[None]:
    """Every output a tensor of its own, which OpenVINO's converter demands; as before afterwards."""
    graph, output = program.graph, program.graph.output_node()
    before, made = output.args, []
    if len(output.args[0]) == 1:
        yield
        return
    with graph.inserting_before(output):
        for node in output.args[0]:
            order = list(range(node.meta["val"].dim()))
            made.append(graph.call_function(torch.ops.aten.permute.default, (node, order)))
            made[-1].meta = dict(node.meta)
    try:
        output.args = (tuple(made),)
        yield
    finally:
        output.args = before
        for node in made:
            graph.erase_node(node)


def input_order(program: ExportedProgram) -> list[str]:
    """The names of a flat program's tensors in the order of a call."""
    return [str(name) for name in program.graph_signature.user_inputs]


def _name_axes(graph: Any, axes: Axes) -> None:
    """Put `batch`, `height`, `width` for torch's symbols (s77) in the shapes of inputs, outputs and all between."""
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
    """Where PyTorch exports, loads or converts: progress lines, dumps of graphs and what it says of its own calls (that
    they are deprecated) are for the authors of the converters. Errors are still raised, and what was made is verified
    number by number. Other threads wait here.
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
