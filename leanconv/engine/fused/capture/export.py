"""From an exported program to the engine's graph: constants are computed once, aten operators become ops."""

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
from leanconv.engine.fused.ir.graph import Graph, Node, Op
from leanconv.engine.fused.ir.kinds.call import Call, Ref
from leanconv.engine.fused.ir.kinds.values import Constant, Input, Length, Size, constant


class NotCaptured(Exception):
    """The program cannot run as a graph of this engine; the message says why."""


def to_graph(
    program: ExportedProgram, shapes: Sequence[torch.Size] | None = None, plain: Mapping[str, str] | None = None
) -> Graph:
    """The flat program of the workbench as a graph. Raises NotCaptured for programs that write into what they read.

    Args:
        shapes: the inputs' shapes in the call, for a program with dynamic shapes (default: those of the trace).
        plain: operators that stay calls of PyTorch -> why.
    """
    graph = Capture(decomposed(program), shapes, plain).graph()
    graph.source = program, shapes
    return graph


_DECOMPOSED: WeakKeyDictionary[ExportedProgram, ExportedProgram] = WeakKeyDictionary()


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in core operators. Cached: it takes seconds, and each dtype asks for it."""
    if program not in _DECOMPOSED:
        with quiet():
            _DECOMPOSED[program] = program.run_decompositions({})
    return _DECOMPOSED[program]


class Capture:
    """The capture of one program. `of` maps its values to nodes: a list for several results, None for an assertion.

    With dynamic shapes, decisions follow the traced shapes, but nodes have the shapes of the call. The two differ: a
    batch of one is traced as two, because PyTorch would take it for a constant.
    """

    def __init__(
        self, program: ExportedProgram, shapes: Sequence[torch.Size] | None, plain: Mapping[str, str] | None
    ) -> None:
        self.program, self.shapes = program, shapes
        self.plain = dict(plain or {})
        self.symbols: dict[Any, int] = {}  # symbol -> its value in the call
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
                    self.of[node] = self.add(Input(len(inputs)), [], node)
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

    def add(self, op: Op, inputs: list[Any], like: fx.Node, shape: Any = None) -> Node:
        """A new node, by default with the shape of the program's node; always with its dtype."""
        value = like.meta.get("val")
        shape = value.shape if shape is None and isinstance(value, Tensor) else shape or ()
        dtype = value.dtype if isinstance(value, Tensor) else torch.float32
        sources = [self.value(x) for x in inputs]
        made = Node(op, sources, tuple(map(self.here, shape)), dtype, like.name)
        self.nodes.append(made)
        return made

    def value(self, x: Any) -> Node:
        found = x if isinstance(x, Node) else self.of.get(x)
        if not isinstance(found, Node):
            raise NotCaptured(f"{x} is no tensor")
        return found

    def fixed(self, x: Any) -> Tensor | None:
        """The tensor of an argument that is constant; None for others."""
        found = self.of.get(x) if isinstance(x, fx.Node) else x
        return found.op.value if isinstance(found, Node) and isinstance(found.op, Constant) else None

    def shape(self, x: fx.Node) -> tuple[int, ...]:
        """The shape in the traced call."""
        return tuple(size if isinstance(size, int) else size.node.hint for size in x.meta["val"].shape)

    def same_sizes(self, x: fx.Node, y: fx.Node) -> bool:
        """Whether two values have the same shape in every call."""
        return [*map(_expression, x.meta["val"].shape)] == [*map(_expression, y.meta["val"].shape)]

    def meet(self, placeholder: fx.Node, index: int) -> None:
        """Bind the symbols in an input's shape to the lengths of the call."""
        if self.shapes is not None:
            for size, length in zip(placeholder.meta["val"].shape, self.shapes[index], strict=True):
                if not isinstance(size, int):
                    self.symbols[size.node.expr] = length

    def here(self, size: Any) -> Any:
        """The value of a number of the program in the call."""
        if not isinstance(size, torch.SymInt | torch.SymFloat):
            return size
        value: Any = size.node.expr.xreplace(self.symbols) if self.symbols else size.node.hint
        return int(value) if isinstance(size, torch.SymInt) else float(value)

    def size(self, node: fx.Node) -> Node:
        """The node of a number that the program computes from the lengths of its inputs."""
        value = self.here(node.meta["val"])
        if node.target is aten.sym_size.int:
            source, axis = node.args
            place: Any = self.of[source]  # type: ignore[index]
            how: Any = Length(place.op.index, axis) if isinstance(place.op, Input) else None  # type: ignore[arg-type]
            sources: list[fx.Node] = []
        else:
            how, sources = _call(node)
        if how is None or not all(map(self.is_size, sources)):
            raise NotCaptured(f"{node.target} of what is computed in the program")
        made = Node(Size(value, how), [self.value(x) for x in sources], (), torch.int64, f"size{len(self.nodes)}")
        self.nodes.append(made)
        return made

    def is_size(self, x: fx.Node) -> bool:
        return isinstance(found := self.of[x], Node) and isinstance(found.op, Size)

    def read(self, node: fx.Node) -> Any:
        if "_assert" in str(node.target):
            return None
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            return self.size(node)
        sources = list(node.all_input_nodes)
        known = [self.of[x] for x in sources]
        if all(isinstance(x, Node) and isinstance(x.op, Constant) for x in known):
            return self.computed(node)
        if node.target is operator.getitem and isinstance(known[0], list):
            return known[0][node.args[1]]  # type: ignore[index]  # one of several results
        args, reader = _arguments(node), READERS.get(node.target)
        if any(map(self.is_size, sources)):
            reader = reader if may_fix(node) else None
            args = fx.node.map_arg(args, lambda x: self.of[x].op.value if self.is_size(x) else x)
        made = None
        if reader is not None and args is not None and node.name not in self.plain:
            made = self.tried(reader, node, args)
        return self.call(node) if made is None else made

    def tried(self, reader: Reader, node: fx.Node, args: tuple[Any, ...]) -> Any:
        """The reader's nodes for an operator; None where the reader fails, and the operator stays a call."""
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
        """Constant folding: the result of an operator whose inputs are all constants."""

        def of(x: fx.Node) -> Any:
            return self.of[x].op.value

        args, kwargs = fx.node.map_arg(node.args, of), fx.node.map_arg(node.kwargs, of)
        made = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(made, Tensor):
            return constant(made, node.name)
        return [constant(x, node.name) for x in made]

    def call(self, node: fx.Node) -> Node:
        """A call of any other operator. `view` becomes `reshape`, which copies where the layout requires it."""
        target: Any = node.target
        if target in (aten.view.default, aten._unsafe_view.default):
            target = aten.reshape.default
        if not isinstance(target, torch._ops.OpOverload) and target is not operator.getitem:
            raise NotCaptured(f"{node.target} in the program")
        call, sources = _call(node)
        if "as_strided" in str(target):
            laid = self.as_traced(node.args[0])  # type: ignore[arg-type]
            return self.add(replace(call, target=target), [laid, *sources[1:]], node)
        return self.add(replace(call, target=target), sources, node)

    def as_traced(self, x: fx.Node) -> Node:
        """A copy of a value with the strides of the trace, for an operator that reads memory by strides."""
        value = x.meta["val"]
        strides, held = value.stride(), value.untyped_storage().nbytes()
        if not isinstance(held, int) or value.storage_offset() or held != value.numel() * value.itemsize:
            raise NotCaptured("the model reads memory by strides (as_strided) beside a value of its own")
        return self.add(Call(partial(_laid_out, strides), (Ref(0),)), [x], x)


def _laid_out(strides: Sequence[int], x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


def _call(node: fx.Node) -> tuple[Call, list[fx.Node]]:
    """The program's call with a `Ref` for each input, and the inputs."""
    sources: list[fx.Node] = []

    def place(x: fx.Node) -> Any:
        sources.append(x)
        return Ref(len(sources) - 1)

    args, kwargs = fx.node.map_arg(node.args, place), fx.node.map_arg(node.kwargs, place)
    return Call(node.target, args, dict(kwargs)), sources  # type: ignore[arg-type]


def _expression(size: Any) -> Any:
    return size if isinstance(size, int) else size.node.expr


def _arguments(node: fx.Node) -> tuple[Any, ...] | None:
    """All arguments by position, with defaults; None if the target is no aten operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    arguments = node.target._schema.arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(a.name, a.default_value if a.has_default_value() else None) for a in arguments)
