"""Concatenations, slices and averages: what needs no pass over a map of its own."""

from dataclasses import replace
from typing import Any

from leanconv.engine.fused.ir.block import Block, Slices, Stage, bare
from leanconv.engine.fused.ir.graph import Graph, Node, Users, only_user


def slice_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    """Channels of a concatenation are channels of its pieces; channels of channels likewise."""
    if node.kind != "slice":
        return False
    source, (start, stop) = node.inputs[0], node.data
    if (start, stop) == (0, source.channels):
        graph.replace(node, source)
        return bool(users[node])
    if source.kind == "slice":
        node.inputs, node.data = source.inputs, (start + source.data[0], stop + source.data[0])
        return True
    if source.kind != "cat":
        return False
    pieces, at = [], 0
    for piece in source.inputs:
        low, high = max(start - at, 0), min(stop - at, piece.channels)
        if low < high:
            pieces.append(piece if (low, high) == (0, piece.channels) else graph.put(_slice(piece, low, high), at=node))
        at += piece.channels
    if len(pieces) == 1:
        graph.replace(node, pieces[0])
    else:
        node.kind, node.inputs, node.data = "cat", pieces, None
    return True


def _slice(x: Node, start: int, stop: int) -> Node:
    shape = (x.shape[0], stop - start, *x.shape[2:])
    return Node("slice", [x], (start, stop), shape, x.dtype, f"{x.name}[{start}:{stop}]")


def cat_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "cat" or not any(x.kind == "cat" for x in node.inputs):
        return False
    node.inputs = [y for x in node.inputs for y in (x.inputs if x.kind == "cat" else [x])]
    return True


def average_of_pieces(graph: Graph, node: Node, users: Users) -> bool:
    """The average of a concatenation is put together from its pieces', of a slice it is a slice."""
    if node.kind != "average" or (source := node.inputs[0]).kind not in ("cat", "slice"):
        return False
    made = []
    for piece in source.inputs:
        shared = next((u for u in users[piece] if u is not None and u.kind == "average"), None)
        if shared is None or graph.nodes.index(shared) > graph.nodes.index(node):
            shared = Node("average", [piece], None, (*piece.shape[:2], 1, 1), node.dtype, f"{piece.name}.average")
            graph.put(shared, at=node)
        made.append(shared)
    node.kind, node.inputs, node.data = source.kind, made, source.data
    return True


def side_by_side(graph: Graph, node: Node, users: Users) -> bool:
    """Stencils of slices of one map, concatenated: one stage."""
    if node.kind != "cat":
        return False
    parts: list[tuple[int, int, Stage | None]] = []
    offsets: dict[Node, int] = {}
    for piece in node.inputs:
        stage: Any = None
        if piece.kind == "block":
            if not only_user(piece, users) or not bare(piece.data, act=True) or piece.data.pieces > 1:
                return False
            stage, piece = piece.data.stages[0], piece.inputs[0]
            if isinstance(stage, Slices) or not stage.depthwise:
                return False
        source, first = (piece.inputs[0], piece.data[0]) if piece.kind == "slice" else (piece, 0)
        at = offsets.setdefault(source, sum(x.channels for x in offsets))
        parts.append((at + first, piece.channels, stage))
    if not any(stage for _, _, stage in parts) or any(source.kind == "cat" for source in offsets):
        return False
    if len({(x.shape[0], *x.shape[2:]) for x in offsets}) != 1:  # each branch pads in its own way
        graph.leave(node, "its branches read maps of different sizes")
        return False
    node.kind, node.inputs = "block", list(offsets)
    node.data = Block((Slices(tuple(parts), sum(x.channels for x in offsets)),), pieces=len(offsets))
    return True


def cat_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """A block reads the pieces of a concatenation where they lie; a gated sum their averages likewise."""
    if node.kind not in ("block", "gated") or node.data.pieces != 1:
        return False
    first = 2 if node.kind == "gated" else 0
    source, rest = node.inputs[first], node.inputs[first + 1 :]
    if source.kind != "cat":
        return False
    if node.kind == "gated":
        if rest[0].kind != "cat" or [x.channels for x in rest[0].inputs] != [x.channels for x in source.inputs]:
            return False
        rest = rest[0].inputs
    node.inputs = [*node.inputs[:first], *source.inputs, *rest]
    node.data = replace(node.data, pieces=len(source.inputs))
    return True


def average_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    """What writes a map also sums it up: the average is its second result."""
    if node.kind != "average" or (source := node.inputs[0]).kind not in ("block", "gated", "max_pool"):
        return False
    if source.kind == "max_pool":
        source.data = (*source.data[:3], True)
        node.kind = "second"
        return True
    if source.data.average:
        twin = next(u for u in users[source] if u is not None and u.kind == "second")
        graph.replace(node, twin)
        return bool(users[node])
    source.data = replace(source.data, average=True)
    node.kind = "second"
    return True
