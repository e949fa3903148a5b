"""From an exported program to the engine's graph: constants computed once, every spelling of a thing made one."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from leanconv.deploy.program import quiet
from leanconv.engine.fused.capture.aten import READERS, Reader, aten, may_fix
from leanconv.engine.fused.ir.graph import Call, Graph, Length, Node, Ref, constant


class NotCaptured(Exception):
    """Why a program cannot be run as a graph of this engine."""


def to_graph(
    program: ExportedProgram, shapes: Sequence[torch.Size] | None = None, plain: Mapping[str, str] | None = None
) -> Graph:
    """The flat program of the workbench as a graph. Raises NotCaptured for programs that write into what they read.

    Args:
        shapes: of a program with open sizes, those of the call that it is made for (default: those it was traced with).
        plain: operators of the program, by name, that stay calls of PyTorch's, and why.
    """
    graph = Capture(decomposed(program), shapes, plain).graph()
    graph.source = program, shapes
    return graph


_DECOMPOSED: WeakKeyDictionary[ExportedProgram, ExportedProgram] = WeakKeyDictionary()


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in core operators; made once, for it takes seconds and each number type asks for it."""
    if program not in _DECOMPOSED:
        with quiet():
            _DECOMPOSED[program] = program.run_decompositions({})
    return _DECOMPOSED[program]


class Capture:
    """One program being read: `of` maps its values to ours (a list where a reader made several, None for asserts).

    Where the program has open sizes, what is decided by shapes is decided by those it was traced with, and nodes have
    the shapes of the call that they are made for: a batch of one is traced as two, lest it be taken for a constant.
    """

    def __init__(
        self, program: ExportedProgram, shapes: Sequence[torch.Size] | None, plain: Mapping[str, str] | None
    ) -> None:
        self.program, self.shapes = program, shapes
        self.plain = dict(plain or {})
        self.symbols: dict[Any, int] = {}  # their values in the call
        self.nodes: list[Node] = []
        self.of: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def graph(self) -> Graph:
        signature = self.program.graph_signature
        inputs: list[Node] = []
        outputs: list[Node] = []
        for spec in signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise NotCaptured(f"the model writes into {spec.target or 'its inputs'}")
        held = {**self.program.state_dict, **self.program.constants}
        specs = iter(signature.input_specs)
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                source = next(specs)
                if source.kind is InputKind.USER_INPUT:
                    self.meet(node, len(inputs))
                    self.of[node] = self.add("input", [], len(inputs), node)
                    inputs.append(self.of[node])
                else:
                    self.of[node] = constant(held[source.target].detach(), node.name)
            elif node.op == "call_function":
                self.of[node] = self.read(node)
            elif node.op == "output":
                outputs = [self.value(x) for x in node.args[0]]
            else:
                raise NotCaptured(f"{node.op} {node.target} in the program")
        graph = Graph(self.nodes, inputs, outputs, self.plain)
        graph.tidy()
        return graph

    def add(self, kind: str, inputs: list[Any], data: Any, like: fx.Node, shape: Any = None) -> Node:
        """A node of ours, with the shape and dtype of the program's node unless another shape is given."""
        value = like.meta.get("val")
        shape = value.shape if shape is None and isinstance(value, Tensor) else shape or ()
        dtype = value.dtype if isinstance(value, Tensor) else torch.float32
        sources = [self.value(x) for x in inputs]
        made = Node(kind, sources, data, tuple(map(self.here, shape)), dtype, like.name)
        self.nodes.append(made)
        return made

    def value(self, x: Any) -> Node:
        found = x if isinstance(x, Node) else self.of.get(x)
        if not isinstance(found, Node):
            raise NotCaptured(f"{x} is no tensor")
        return found

    def fixed(self, x: Any) -> Tensor | None:
        """The tensor behind an argument, where it is a constant."""
        found = self.of.get(x) if isinstance(x, fx.Node) else x
        return found.data if isinstance(found, Node) and found.kind == "constant" else None

    def shape(self, x: fx.Node) -> tuple[int, ...]:
        """Of the traced call."""
        return tuple(size if isinstance(size, int) else size.node.hint for size in x.meta["val"].shape)

    def same_sizes(self, x: fx.Node, y: fx.Node) -> bool:
        """Whether two values have one shape in every call."""
        return [*map(_expression, x.meta["val"].shape)] == [*map(_expression, y.meta["val"].shape)]

    def meet(self, placeholder: fx.Node, index: int) -> None:
        """Note what the symbols in an input's shape are in the call."""
        if self.shapes is not None:
            for size, length in zip(placeholder.meta["val"].shape, self.shapes[index], strict=True):
                if not isinstance(size, int):
                    self.symbols[size.node.expr] = length

    def here(self, size: Any) -> Any:
        """A number of the program as it is in the call."""
        if not isinstance(size, torch.SymInt | torch.SymFloat):
            return size
        value: Any = size.node.expr.xreplace(self.symbols) if self.symbols else size.node.hint
        return int(value) if isinstance(size, torch.SymInt) else float(value)

    def size(self, node: fx.Node) -> Node:
        """A number that the program computes from the lengths of its inputs."""
        value = self.here(node.meta["val"])
        if node.target is aten.sym_size.int:
            source, axis = node.args
            place: Any = self.of[source]  # type: ignore[index]
            how: Any = Length(place.data, axis) if place.kind == "input" else None  # type: ignore[arg-type]
            sources: list[fx.Node] = []
        else:
            how, sources = _call(node)
        if how is None or any(self.value(x).kind != "size" for x in sources):
            raise NotCaptured(f"{node.target} of what is computed in the program")
        made = Node("size", [self.value(x) for x in sources], (value, how), (), torch.int64, f"size{len(self.nodes)}")
        self.nodes.append(made)
        return made

    def is_size(self, x: fx.Node) -> bool:
        return isinstance(found := self.of[x], Node) and found.kind == "size"

    def read(self, node: fx.Node) -> Any:
        if "_assert" in str(node.target):
            return None
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            return self.size(node)
        sources = list(node.all_input_nodes)
        known = [self.of[x] for x in sources]
        if all(isinstance(x, Node) and x.kind == "constant" for x in known):
            return self.computed(node)
        if node.target is operator.getitem and isinstance(known[0], list):
            return known[0][node.args[1]]  # type: ignore[index]  # a reader made several values
        args, reader = _arguments(node), READERS.get(node.target)
        if any(isinstance(x, Node) and x.kind == "size" for x in known):
            reader = reader if may_fix(node) else None
            args = fx.node.map_arg(args, lambda x: self.of[x].data[0] if self.is_size(x) else x)
        made = None
        if reader is not None and args is not None and node.name not in self.plain:
            made = self.tried(reader, node, args)
        return self.call(node) if made is None else made

    def tried(self, reader: Reader, node: fx.Node, args: tuple[Any, ...]) -> Any:
        """What a reader makes of an operator; None where it cannot, which is then known and left to PyTorch."""
        count = len(self.nodes)
        try:
            return reader(self, node, args)
        except NotCaptured:
            raise
        except Exception as error:
            del self.nodes[count:]
            self.plain[node.name] = f"{type(error).__name__}: {error}"
            return None

    def computed(self, node: fx.Node) -> Any:
        """What depends on constants alone, now."""

        def of(x: fx.Node) -> Any:
            return self.of[x].data

        args, kwargs = fx.node.map_arg(node.args, of), fx.node.map_arg(node.kwargs, of)
        made = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(made, Tensor):
            return constant(made, node.name)
        return [constant(x, node.name) for x in made]

    def call(self, node: fx.Node) -> Node:
        """Any other operator, as it is; views become copies where the layout wants it."""
        target: Any = node.target
        if target in (aten.view.default, aten._unsafe_view.default):
            target = aten.reshape.default
        if not isinstance(target, torch._ops.OpOverload) and target is not operator.getitem:
            raise NotCaptured(f"{node.target} in the program")
        call, sources = _call(node)
        if "as_strided" in str(target):
            laid = self.as_traced(node.args[0])  # type: ignore[arg-type]
            return self.add("call", [laid, *sources[1:]], replace(call, target=target), node)
        return self.add("call", sources, replace(call, target=target), node)

    def as_traced(self, x: fx.Node) -> Node:
        """A value that lies in memory as the program has it: what is read by strides depends on that."""
        value = x.meta["val"]
        strides, held = value.stride(), value.untyped_storage().nbytes()
        if not isinstance(held, int) or value.storage_offset() or held != value.numel() * value.itemsize:
            raise NotCaptured("the model reads memory by strides (as_strided) beside a value of its own")
        return self.add("call", [x], Call(partial(_laid_out, strides), (Ref(0),)), x)


def _laid_out(strides: Sequence[int], x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


def _call(node: fx.Node) -> tuple[Call, list[fx.Node]]:
    """The program's call with places for what it reads, and that."""
    sources: list[fx.Node] = []

    def place(x: fx.Node) -> Any:
        sources.append(x)
        return Ref(len(sources) - 1)

    args, kwargs = fx.node.map_arg(node.args, place), fx.node.map_arg(node.kwargs, place)
    return Call(node.target, args, dict(kwargs)), sources  # type: ignore[arg-type]


def _expression(size: Any) -> Any:
    return size if isinstance(size, int) else size.node.expr


def _arguments(node: fx.Node) -> tuple[Any, ...] | None:
    """All arguments by position, defaults filled in; None for what is no aten operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    arguments = node.target._schema.arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(a.name, a.default_value if a.has_default_value() else None) for a in arguments)
