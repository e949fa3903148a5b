"""A tuned program as two files: opened again, it needs no capture, no folding and no measurement."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from leanconv.engine.candidate import ModelForm
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Graph, Node, Run
from leanconv.engine.fused.ir.saved import from_data, to_data
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, KERNEL, ONE_KERNEL
from leanconv.engine.fused.lowering.kernels import KernelRun
from leanconv.engine.fused.lowering.samples import sample
from leanconv.errors import BadInput
from leanconv.files import read_json
from leanconv.kernels import backend, to_contiguous

_GRAPH, _WEIGHTS = "graph.json", "graph.safetensors"


def save_program(graph: Graph, names: Mapping[Node, str], dense: bool, folder: Path) -> None:
    """Write a tuned graph of one input and one output. `names`: the implementation of each node; `dense`: of planes.

    Raises: NotStorable if the graph has values that cannot be written.
    """
    data, tensors = to_data(graph)
    data["by"] = [names.get(node, "") for node in graph.nodes]
    data["dense"] = dense
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, folder / _WEIGHTS)
    (folder / _GRAPH).write_text(json.dumps(data))


def open_program(folder: Path, shape: torch.Size) -> ModelForm:
    """The program that `save_program` wrote, as a function of one tensor. Raises BadInput for other files."""
    data = read_json(folder / _GRAPH)
    try:
        tensors = load_file(folder / _WEIGHTS)
    except Exception as error:
        raise BadInput(f"{folder / _WEIGHTS}: cannot be read: {error}") from error
    graph = from_data(data, tensors)
    names, dense = data.get("by"), data.get("dense")
    if (
        not isinstance(names, list)
        or len(names) != len(graph.nodes)
        or not len(graph.inputs) == len(graph.outputs) == 1
    ):
        raise BadInput(f"{folder / _GRAPH}: no program of this version")
    chosen = {node: name for node, name in zip(graph.nodes, names, strict=True) if node.op.is_step}
    _compile(chosen)
    runs = {node: _made(node, name) for node, name in chosen.items()}
    program = Program(graph, runs, [bool(dense)])

    def form(x: Tensor) -> Tensor:
        answer = program(x)[0]
        if answer.dtype is not x.dtype:
            answer = answer.to(x.dtype)
        return to_contiguous(answer) if dense else answer

    return form


def _compile(chosen: Mapping[Node, object]) -> None:
    """Compile the kernels that the cache has lost, on several cores. A run that is made meanwhile cannot be called."""
    kernels = {node: name for node, name in chosen.items() if name in ONE_KERNEL}
    if not kernels or backend().why_not():
        return
    with backend().compiling_ahead(), torch.no_grad():
        for node, name in kernels.items():
            if isinstance(run := _made(node, name), KernelRun):
                run.meet([sample(x, empty=True) for x in node.inputs])


def _made(node: Node, name: object) -> Run:
    """The node's implementation of that name, or its plain kernel where the named one is for another processor.

    Raises: BadInput if there is neither here.
    """
    for wanted in (name, KERNEL.name) if name in ONE_KERNEL else (name,):
        for each in IMPLEMENTATIONS[type(node.op)]:
            if each.name == wanted and (run := each.make(node)) is not None:
                return run
    raise BadInput(f"no implementation {name!r} of {node.op!r} here")
