"""Quantization: chosen nodes compute in 8-bit integers, and conversions stand where float32 meets uint8.

A map has one quantization, whoever reads it. Slices, shuffles, max-pooling and concatenations move numbers and change
none: they keep the type of what they read, and all that they read and give shares one quantization (`ties`).

Averages over maps stay float32, and so does what is computed from them alone: gates, a classifier. The network's inputs
and outputs stay float32. An integer primitive gives float32 itself where nothing reads its map in uint8.
"""

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Graph, Node
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.data_movement import Cat, Shuffle, Slice
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.ir.kinds.max_pool import MaxPool
from leanconv.engine.fused.ir.kinds.reductions import Average, Sum
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.ir.kinds.values import AverageOf, Constant, Input, Size
from leanconv.engine.fused.lowering.primitives import primitive
from leanconv.errors import BadInput
from leanconv.ops.forms import Form
from leanconv.ops.integer_weights import integer_weights
from leanconv.ops.quantized import Quantization, Quantized, channels_of
from leanconv.ops.separable import Separable


class Levels(NamedTuple):
    """The quantizations of a float graph: of each map, and of the maps inside each block in the order of its form.

    `weights`: those of blocks whose inner maps were equalized; other blocks have their own.
    """

    of: dict[Node, Quantization]
    inner: dict[Node, tuple[Quantization, ...]]
    weights: dict[Node, list[Tensor]] = {}


def quantizable(graph: Graph) -> list[Node]:
    """The nodes that can compute in integers: convolutions, gated sums, sums and activations of maps."""
    small = _from_averages(graph)
    kinds = (Block, GatedSum, Upsample, Add, Activation)
    found = [node for node in graph.nodes if isinstance(node.op, kinds) and not small.issuperset(maps_of(node))]
    return [node for node in found if node.dtype == torch.float32 and primitive(node) is not None]


def _from_averages(graph: Graph) -> set[Node]:
    """Averages and sums over maps, and what is computed from them alone."""
    found: set[Node] = set()
    for node in graph.nodes:
        made = node.inputs and found.issuperset(node.inputs)
        if made or isinstance(node.op, Average | AverageOf | Sum | Constant | Size):
            found.add(node)
    return found


def maps_of(node: Node) -> list[Node]:
    """The maps that a node's primitive reads in uint8: without averages and gate."""
    maps = [x for x in node.op.maps(node.inputs) if x is not None]
    return maps[:-1] if isinstance(node.op, Block) and node.op.gate else maps


def moves(node: Node) -> bool:
    """Whether it moves numbers of its inputs and changes none."""
    return isinstance(node.op, Slice | Shuffle | MaxPool | Cat)


def ties(graph: Graph) -> dict[Node, Node]:
    """For every map one of those that share its quantization."""
    group: dict[Node, Node] = {}
    for node in graph.nodes:
        group[node] = node
        if not moves(node) or len(node.shape) != 4:
            continue
        head, joined = group[node.inputs[0]], {group[x] for x in (node, *node.inputs)}
        group = {x: head if of in joined else of for x, of in group.items()}
    return group


class Quantizer:
    """A float graph with its quantizations. Weights are rounded once, however often the graph is rewritten.

    Attributes:
        nodes: those that can compute in integers.
        left_out: other convolutions -> why their quantizations do not go with their form.
    """

    def __init__(self, graph: Graph, levels: Levels) -> None:
        self.graph, self.levels = graph, levels
        self._made: dict[tuple[Node, bool], Integer] = {}
        self.nodes: list[Node] = []
        self.left_out: dict[Node, str] = {}
        for node in quantizable(graph):
            try:
                self.integer(node)
                self.nodes.append(node)
            except BadInput as error:
                self.left_out[node] = str(error)

    def integer(self, node: Node, *, wide: bool = False) -> Integer:
        """The integer primitive that stands for a float node. `wide`: its result is float32."""
        if (node, wide) not in self._made:
            self._made[node, wide] = integer(node, self.levels, wide=wide)
        return self._made[node, wide]

    def rewrite(self, chosen: Set[Node]) -> tuple[Graph, dict[Node, Node]]:
        """A new graph in which the `chosen` nodes compute in integers, and the new node of each old one."""
        return _Rewriting(self, chosen).done()


def integer(node: Node, levels: Levels, *, wide: bool = False) -> Integer:
    """The integer primitive that stands for a float node. `wide`: its result is float32.

    Raises: BadInput as `Quantized` does.
    """
    found = primitive(node)
    if found is None:
        raise BadInput(f"no primitive computes {node!r}")
    form, weights = found
    maps = [levels.of[x] for x in maps_of(node)]
    inputs, addend = maps, None
    if isinstance(node.op, GatedSum):
        addend, inputs = maps[0], maps[1:]
    elif isinstance(node.op, Add) or (isinstance(node.op, Block) and node.op.residual):
        *inputs, addend = maps
    inner = _passed_on(form, tuple(inputs), levels.inner.get(node, ()))
    made = Quantized(form, tuple(inputs), None if wide else levels.of[node], inner, addend)  # type: ignore[arg-type]
    return Integer(made, tuple(integer_weights(made, levels.weights.get(node, weights))), repr(node.op))


def _passed_on(
    form: Form, inputs: tuple[Quantization, ...], inner: tuple[Quantization, ...]
) -> tuple[Quantization, ...]:
    """The inner quantizations; a stencil that computes nothing keeps that of what it reads, where this is one."""
    if not isinstance(form, Separable) or not inner:
        return inner
    found: list[Quantization] = []
    before = [by for by, count in zip(inputs, channels_of(form), strict=True) for _ in range(count)]
    for stage in form.stages[: len(form.stages) if form.out_channels is not None else -1]:
        after: list[Quantization] = []
        for s in stage:
            by, read = inner[len(found)], {*before[s.first : s.first + s.channels]}
            if s.identity and s.activation == "none" and len(read) == 1:
                by = read.pop()
            found.append(by)
            after += [by] * s.channels
        before = after
    return (*found, *inner[len(found) :])


@dataclass
class _Rewriting:
    """The new graph while it is built, in the order of the old one."""

    source: Quantizer
    chosen: Set[Node]
    made: dict[Node, Node] = field(default_factory=dict)  # old -> new
    nodes: list[Node] = field(default_factory=list)
    _converted: dict[Node, Node] = field(default_factory=dict)  # new -> the same map in the other type
    _read: dict[Node, int] = field(default_factory=dict)  # old -> how many of the chosen read it
    _narrow: set[Node] = field(default_factory=set)  # old maps that are read in uint8

    def done(self) -> tuple[Graph, dict[Node, Node]]:
        for node in reversed(self.source.graph.nodes):
            if node in self.chosen:
                for x in maps_of(node):
                    self._read[x] = self._read.get(x, 0) + 1
                    self._narrow.add(x)
            elif moves(node) and node in self._narrow:
                self._narrow |= {*node.inputs}
        for node in dict.fromkeys((*self.source.graph.inputs, *self.source.graph.nodes)):
            self.made[node] = self._new(node)
        inputs = [self.made[node] for node in self.source.graph.inputs]
        outputs = [self._wide(node) for node in self.source.graph.outputs]
        made = Graph(self.nodes, inputs, outputs, dict(self.source.graph.left_out), self.source.graph.source)
        made.tidy()
        return made, self.made

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def _new(self, node: Node) -> Node:
        if isinstance(node.op, Input | Constant | Size | AverageOf):
            return self._add(replace(node, inputs=[self.made[x] for x in node.inputs]))
        if node in self.chosen:
            return self._integer(node)
        if moves(node) and (by := self._shared(node)) is not None:
            return self._moved(node, by)
        return self._add(replace(node, inputs=[self._wide(x) for x in node.inputs]))

    def _shared(self, node: Node) -> Quantization | None:
        """The quantization of all that a node moves; None where some of it is float32, or not alike."""
        if any(self.made[x].dtype != torch.uint8 for x in node.inputs):
            return None
        by = {self.source.levels.of[x] for x in node.inputs}
        return by.pop() if len(by) == 1 and by == {self.source.levels.of.get(node)} else None

    def _moved(self, node: Node, by: Quantization) -> Node:
        inputs = [self.made[x] for x in node.inputs]
        if not isinstance(node.op, MaxPool):
            return self._add(replace(node, inputs=inputs, dtype=torch.uint8))
        form = Quantized(node.op.primitive(node)[0], (by,), by)  # type: ignore[arg-type]
        return self._add(replace(node, op=Integer(form, (), repr(node.op)), inputs=inputs, dtype=torch.uint8))

    def _integer(self, node: Node) -> Node:
        wide = node not in self._narrow and not self.source.integer(node).average
        op, maps = self.source.integer(node, wide=wide), {*maps_of(node)}
        inputs = [self._bytes(x) if x in maps else self._wide(x) for x in node.inputs]
        return self._add(replace(node, op=op, inputs=inputs, dtype=op.form.dtype))

    def _bytes(self, node: Node) -> Node:
        """The map in uint8. An integer primitive quantizes what it alone reads."""
        here = self.made[node]
        if here.dtype == torch.uint8 or self._read[node] == 1:
            return here
        return self._convert(here, Quantize(self.source.levels.of[node]), torch.uint8, "bytes")

    def _wide(self, node: Node) -> Node:
        """The value in the type of the float graph."""
        here = self.made[node]
        if here.dtype == node.dtype:
            return here
        return self._convert(here, Dequantize(self.source.levels.of[node]), node.dtype, "float")

    def _convert(self, here: Node, op: Quantize | Dequantize, dtype: torch.dtype, word: str) -> Node:
        """One conversion for all readers."""
        if here not in self._converted:
            self._converted[here] = self._add(Node(op, [here], here.shape, dtype, f"{here.name}.{word}"))
        return self._converted[here]
