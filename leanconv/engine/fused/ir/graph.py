"""The engine's own graph: few kinds of nodes, constants held by the node, values in execution order.

| kind | inputs | data |
|---|---|---|
| input | - | its place in the call |
| constant | - | the tensor |
| size | other sizes | its value in the captured call, and the `Length` or `Call` that gives it in another |
| block | pieces of one concatenation, then residual and gate where it has them | `Block` |
| gated | a, average of a, pieces of b's input, their averages | `Gated` |
| upsample | x | `Upsample`: transposed convolution 2x2 with stride 2 |
| affine | x | scale, shift per channel |
| act | x | the activation's name |
| scale | x, gate `N C 1 1` | - |
| add | x, y of one shape | - |
| cat | pieces | - (channels) |
| slice | x | start, stop (channels) |
| shuffle | x | a, b: channel i·b + j becomes channel j·a + i |
| average | x `N C H W` | - : `N C 1 1` |
| pad | x | left, right, top, bottom zeros |
| max_pool | x | kernel, stride, padding, whether its average is wanted |
| second | a block or gated sum | - : its average |
| linear | x `N C` | `Linear` |
| sum | x `N C H W` | - : over height and width |
| cast | x | the dtype |
| call | any | an aten operator with its arguments |
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Node:
    """One value of the graph and how it is computed. `shape` is that of the captured call."""

    kind: str
    inputs: list["Node"]
    data: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""

    @property
    def channels(self) -> int:
        return self.shape[1]

    def __repr__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        data = "" if isinstance(self.data, Tensor) else repr(self.data)
        return f"{self.name} = {self.kind}({', '.join(x.name for x in self.inputs)}) {sizes} {data}"


UNRUN = frozenset({"input", "constant", "size", "second"})  # kinds that are no step of a call
Users = dict[Node, list[Node]]  # who reads each node; None stands for the caller


@dataclass(frozen=True)
class Ref:
    """The place of a node's input inside the arguments of a `call`."""

    place: int


@dataclass(frozen=True)
class Call:
    """An aten operator and its arguments; `Ref` stands where an input goes."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *inputs: Any) -> Any:
        def fill(value: Any) -> Any:
            if isinstance(value, Ref):
                return inputs[value.place]
            return type(value)(map(fill, value)) if isinstance(value, list | tuple) else value

        return self.target(*fill(self.args), **{key: fill(value) for key, value in self.kwargs.items()})

    def __repr__(self) -> str:
        return str(self.target)


@dataclass(frozen=True)
class Length:
    """The length of an axis of one of the graph's inputs."""

    tensor: int
    axis: int


Saved = tuple[list[Node], list[Node], list[tuple[Node, str, list[Node], Any]]]


@dataclass
class Graph:
    """Nodes in an order in which they can be run."""

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    left_out: dict[str, str] = field(default_factory=dict)  # what stays as the program has it, and why
    source: tuple[Any, ...] = ()  # the program that it was read from, and the sizes of the call

    def leave(self, node: Node, why: str) -> None:
        """Note that what stands around `node` stays as it is."""
        sizes = "x".join(map(str, node.shape))
        self.left_out.setdefault(f"{node.name} {sizes}", why)

    def saved(self) -> "Saved":
        """All that rules may change, for `restore`."""
        held = [(node, node.kind, list(node.inputs), node.data) for node in self.nodes]
        return list(self.nodes), list(self.outputs), held

    def restore(self, saved: "Saved") -> None:
        self.nodes, self.outputs = list(saved[0]), list(saved[1])
        for node, kind, inputs, data in saved[2]:
            node.kind, node.inputs, node.data = kind, list(inputs), data

    def users(self) -> dict[Node, list[Node]]:
        """Who reads each node, once for every reading; an output is read by the caller (a None is counted)."""
        found: dict[Node, list[Any]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                found[source].append(node)
        for node in self.outputs:
            found[node].append(None)
        return found

    def replace(self, old: Node, new: Node) -> None:
        """Everybody who read `old` reads `new`; `old` stays where it stands until `tidy`."""
        for node in self.nodes:
            if node is not new:
                node.inputs = [new if x is old else x for x in node.inputs]
        self.outputs = [new if x is old else x for x in self.outputs]

    def put(self, new: Node, *, at: Node) -> Node:
        """Insert `new` before `at`."""
        self.nodes.insert(self.nodes.index(at), new)
        return new

    def tidy(self) -> None:
        """Forget what nobody reads, and bring the rest into an order that can be run."""
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
    """The name of the program's operator that a node stands for, or was made beside."""
    return node.name.split(".")[0].split("[")[0]


def constant(value: Tensor, name: str = "") -> Node:
    return Node("constant", [], value, tuple(value.shape), value.dtype, name)


def only_user(node: Node, users: Users) -> bool:
    return len(users[node]) == 1
