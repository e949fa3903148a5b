"""The engine's own graph: a node is one value, its `Op` says how it is computed (the kinds: `ir/kinds/`).

Values stand in execution order. Constants are nodes; weights belong to the op that reads them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from leanconv.ops.forms import Form

T = TypeVar("T")  # a node's input, or what stands for it: its place in a program
Run = Callable[..., Any]  # a function of a node's inputs that gives its value
Primitive = tuple[Form, list[Tensor]]  # a form of `leanconv.ops`, and its weights in the order that the form states


class Op:
    """What a node computes. Each kind of node is a subclass, and brings all that passes and lowering ask of it.

    A kind with more than one implementation is listed in `lowering/implementations.py`.
    """

    is_step: ClassVar[bool] = True  # False: a call computes nothing for it
    is_free: ClassVar[bool] = False  # a kernel could read or write in place: no bytes in a roofline
    may_alias: ClassVar[bool] = False  # its result may be a view of its input
    in_float32: ClassVar[bool] = False  # it stays float32 where maps are stored in bfloat16
    any_operand_decides: ClassVar[bool] = False  # one input in bfloat16 suffices; otherwise the first one decides

    def operand_dtypes(self, node: "Node") -> list[torch.dtype]:
        """The dtype that each input must have."""
        return [node.dtype] * len(node.inputs)

    def verify(self, node: "Node") -> str:
        """Why the node is malformed: its inputs do not give its shape. "" if they do."""
        return ""

    def work(self, node: "Node") -> tuple[int, int]:
        """Multiply-adds of the node, and the numbers that it must read and write."""
        return 0, node.traffic

    def primitive(self, node: "Node") -> Primitive | None:
        """The primitive of `leanconv.ops` that computes the node; None where none does."""
        return None

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        """The inputs that the primitive takes as maps, in its order; None for an optional map that is missing."""
        return list(inputs)

    def averages(self, inputs: Sequence[T]) -> list[T]:
        """The inputs that the primitive takes as averages of maps, in its order."""
        return []


class TorchOp(Op, ABC):
    """An op that one function of PyTorch computes."""

    @abstractmethod
    def in_torch(self, node: "Node") -> Run:
        """That function, with the weights in the node's dtype."""


@dataclass(eq=False)
class Node:
    """One value of the graph and how it is computed. `shape` is that of the captured call."""

    op: Op
    inputs: list["Node"]
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def numbers(self) -> int:
        """Elements of the value."""
        return torch.Size(self.shape).numel()

    @property
    def traffic(self) -> int:
        """Elements of the value and of all inputs, each counted once."""
        return self.numbers + sum(x.numbers for x in dict.fromkeys(self.inputs))

    def __repr__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        return f"{self.name} = {self.op!r}({', '.join(x.name for x in self.inputs)}) {sizes}"


Users = dict[Node, list[Node]]  # the readers of each node; None stands for the caller
Saved = tuple[list[Node], list[Node], list[tuple[Node, Op, list[Node]]]]


@dataclass
class Graph:
    """Nodes in an order in which they can be run."""

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    left_out: dict[str, str] = field(default_factory=dict)  # parts that stay as the program has them -> why
    source: tuple[Any, ...] = ()  # the program that it was read from, and the sizes of the call

    def leave(self, node: Node, why: str) -> None:
        """Note why the nodes around `node` stay as they are."""
        sizes = "x".join(map(str, node.shape))
        self.left_out.setdefault(f"{node.name} {sizes}", why)

    def saved(self) -> Saved:
        """All that rules may change, for `restore`."""
        return list(self.nodes), list(self.outputs), [(node, node.op, list(node.inputs)) for node in self.nodes]

    def restore(self, saved: Saved) -> None:
        self.nodes, self.outputs = list(saved[0]), list(saved[1])
        for node, op, inputs in saved[2]:
            node.op, node.inputs = op, list(inputs)

    def users(self) -> Users:
        """The readers of each node, one entry a reading. The caller reads the outputs, and is listed as None."""
        found: dict[Node, list[Any]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                found[source].append(node)
        for node in self.outputs:
            found[node].append(None)
        return found

    def replace(self, old: Node, new: Node) -> None:
        """Let all readers of `old` read `new`; `old` keeps its place until `tidy`."""
        for node in self.nodes:
            if node is not new:
                node.inputs = [new if x is old else x for x in node.inputs]
        self.outputs = [new if x is old else x for x in self.outputs]

    def put(self, new: Node, *, at: Node) -> Node:
        """Insert `new` before `at`."""
        self.nodes.insert(self.nodes.index(at), new)
        return new

    def tidy(self) -> None:
        """Remove nodes that nothing reads, and sort the rest into an order that can be run."""
        done: dict[Node, None] = dict.fromkeys(self.inputs)
        for output in self.outputs:
            _after_inputs(output, done)
        place = {node: i for i, node in enumerate(self.nodes)}
        ordered = sorted((n for n in done), key=lambda n: place.get(n, -1))
        self.nodes = ordered if _runnable(ordered) else list(done)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __str__(self) -> str:
        return "\n".join(map(repr, self.nodes))


def _after_inputs(node: Node, done: dict[Node, None]) -> None:
    """Depth first without recursion: networks are deeper than Python's stack."""
    stack = [(node, iter(node.inputs))]
    open_nodes = {node}
    while stack:
        here, rest = stack[-1]
        for source in rest:
            if source not in done and source not in open_nodes:
                open_nodes.add(source)
                stack.append((source, iter(source.inputs)))
                break
        else:
            done[here] = None
            stack.pop()


def _runnable(nodes: Iterable[Node]) -> bool:
    seen: set[Node] = set()
    for node in nodes:
        if not all(source in seen for source in node.inputs):
            return False
        seen.add(node)
    return True


def origin(node: Node) -> str:
    """The name of the program's operator that a node was captured or derived from."""
    return node.name.split(".")[0].split("[")[0]


def only_user(node: Node, users: Users) -> bool:
    """Whether the node has exactly one reader."""
    return len(users[node]) == 1
