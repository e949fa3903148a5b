"""Concatenations, slices and averages: removed where kernels read, write or sum maps in place."""

from dataclasses import replace

from leanconv.engine.fused.ir.graph import Graph, Node, Users, only_user
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.data_movement import Cat, Slice
from leanconv.engine.fused.ir.kinds.elementwise import Add
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.max_pool import MaxPool
from leanconv.engine.fused.ir.kinds.reductions import Average
from leanconv.engine.fused.ir.kinds.values import AverageOf
from leanconv.engine.fused.ir.stages import Branch, Branches, Stage


def slice_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    """A slice of a concatenation is a concatenation of slices; a slice of a slice is one slice."""
    if not isinstance(node.op, Slice):
        return False
    source, start, stop = node.inputs[0], node.op.start, node.op.stop
    if (start, stop) == (0, source.channels):
        graph.replace(node, source)
        return bool(users[node])
    if isinstance(source.op, Slice):
        node.inputs, node.op = source.inputs, Slice(start + source.op.start, stop + source.op.start)
        return True
    if not isinstance(source.op, Cat):
        return False
    maps, at = [], 0
    for x in source.inputs:
        low, high = max(start - at, 0), min(stop - at, x.channels)
        if low < high:
            maps.append(x if (low, high) == (0, x.channels) else graph.put(_slice(x, low, high), at=node))
        at += x.channels
    if len(maps) == 1:
        graph.replace(node, maps[0])
    else:
        node.op, node.inputs = Cat(), maps
    return True


def _slice(x: Node, start: int, stop: int) -> Node:
    shape = (x.shape[0], stop - start, *x.shape[2:])
    return Node(Slice(start, stop), [x], shape, x.dtype, f"{x.name}[{start}:{stop}]")


def cat_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    """Nested concatenations become one."""
    if not isinstance(node.op, Cat) or not any(isinstance(x.op, Cat) for x in node.inputs):
        return False
    node.inputs = [y for x in node.inputs for y in (x.inputs if isinstance(x.op, Cat) else [x])]
    return True


def average_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    """The average of a concatenation is the concatenation of averages; the average of a slice is a slice."""
    if not isinstance(node.op, Average) or not isinstance((source := node.inputs[0]).op, Cat | Slice):
        return False
    averages = []
    for x in source.inputs:
        shared = next((u for u in users[x] if u is not None and isinstance(u.op, Average)), None)
        if shared is None or graph.nodes.index(shared) > graph.nodes.index(node):
            shared = Node(Average(), [x], (*x.shape[:2], 1, 1), node.dtype, f"{x.name}.average")
            graph.put(shared, at=node)
        averages.append(shared)
    node.op, node.inputs = source.op, averages
    return True


def cat_into_branches(graph: Graph, node: Node, users: Users) -> bool:
    """Depthwise stencils of slices of one map, concatenated: one stage of branches."""
    if not isinstance(node.op, Cat):
        return False
    branches: list[Branch] = []
    offsets: dict[Node, int] = {}
    for x in node.inputs:
        stage: Stage | None = None
        if isinstance(x.op, Block):
            head = x.op.stages[0]
            if not only_user(x, users) or not x.op.is_bare(act=True) or x.op.concat > 1:
                return False
            if isinstance(head, Branches) or not head.depthwise:
                return False
            stage, x = head, x.inputs[0]
        source, first = (x.inputs[0], x.op.start) if isinstance(x.op, Slice) else (x, 0)
        at = offsets.setdefault(source, sum(y.channels for y in offsets))
        branches.append(Branch(at + first, x.channels, stage))
    if not any(branch.stage for branch in branches) or any(isinstance(x.op, Cat) for x in offsets):
        return False
    if len({(x.shape[0], *x.shape[2:]) for x in offsets}) != 1:  # each branch pads in its own way
        graph.leave(node, "its branches read maps of different sizes")
        return False
    node.inputs = list(offsets)
    node.op = Block((Branches(tuple(branches), sum(x.channels for x in offsets)),), concat=len(offsets))
    return True


def cat_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """A block reads the maps of a concatenation where they lie; a gated sum reads their averages likewise."""
    op = node.op
    if not isinstance(op, Block | GatedSum) or op.concat != 1:
        return False
    first = 2 if isinstance(op, GatedSum) else 0
    source, rest = node.inputs[first], node.inputs[first + 1 :]
    if not isinstance(source.op, Cat):
        return False
    if isinstance(op, GatedSum):
        averages = rest[0]
        if not isinstance(averages.op, Cat):
            return False
        if [x.channels for x in averages.inputs] != [x.channels for x in source.inputs]:
            return False
        rest = averages.inputs
    node.inputs = [*node.inputs[:first], *source.inputs, *rest]
    node.op = replace(op, concat=len(source.inputs))
    return True


def average_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    """The kernel that writes a map also sums it up: the average is its second result."""
    if not isinstance(node.op, Average):
        return False
    source = node.inputs[0]
    op = source.op
    if not isinstance(op, Block | GatedSum | MaxPool) and not (isinstance(op, Add) and len(source.shape) == 4):
        return False
    if op.average:
        twin = next(u for u in users[source] if u is not None and isinstance(u.op, AverageOf))
        graph.replace(node, twin)
        return bool(users[node])
    source.op, node.op = replace(op, average=True), AverageOf()
    return True
