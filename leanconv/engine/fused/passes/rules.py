"""How rules are applied: each looks at one node and either rewrites the graph around it (True) or leaves it (False).

They run until none applies. A rule that fails at a node, or leaves a node there that cannot be run, costs that place
alone: the graph is as it was before, the other rules go on, and the reason stands in the table of blocks.
"""

from collections.abc import Callable, Sequence, Set

from leanconv.engine.fused.ir.block import Block, Gated, Slices, Stage, Upsample
from leanconv.engine.fused.ir.graph import Graph, Node, Users

Rule = Callable[[Graph, Node, Users], bool]


class _Failed(Exception):
    """A rule, the node it was tried at, and what went wrong."""

    def __init__(self, rule: Rule, node: Node, why: str) -> None:
        super().__init__(why)
        self.rule, self.node, self.why = rule, node, why


def until_done(graph: Graph, rules: Sequence[Rule]) -> None:
    """All of `rules`, in place; where one fails, without it there."""
    barred: set[tuple[Rule, Node]] = set()
    while True:
        saved = graph.saved()
        try:
            return _apply(graph, rules, barred)
        except _Failed as failed:
            graph.restore(saved)
            barred.add((failed.rule, failed.node))
            graph.leave(failed.node, f"{failed.rule.__name__}: {failed.why}")


def _apply(graph: Graph, rules: Sequence[Rule], barred: Set[tuple[Rule, Node]]) -> None:
    changed = True
    while changed:
        changed = False
        users = graph.users()
        for node in list(graph.nodes):
            if any(_rewrites(rule, graph, node, users) for rule in rules if (rule, node) not in barred):
                changed = True
                users = graph.users()
        graph.tidy()


def _rewrites(rule: Rule, graph: Graph, node: Node, users: Users) -> bool:
    try:
        done = rule(graph, node, users)
    except Exception as error:
        raise _Failed(rule, node, f"{type(error).__name__}: {error}") from error
    if done and (why := contradiction(node)):
        raise _Failed(rule, node, why)
    return done


def contradiction(node: Node) -> str:
    """Why a node cannot be run: what it computes, from inputs of these shapes, has not its shape. "" if it can."""
    match node.data:
        case Block() as block:
            return _block(node, block)
        case Gated() as gated:
            wanted = len(node.inputs) == 2 + 2 * gated.pieces and node.inputs[0].shape == node.shape
            read = sum(x.channels for x in node.inputs[2 : 2 + gated.pieces])
            return "" if wanted and read == gated.weight.shape[1] else "a gated sum of maps that do not go together"
        case Upsample(weight=weight):
            (n, c, h, w), o = node.inputs[0].shape, weight.shape[1]
            right = c == weight.shape[0] and node.shape == (n, o, 2 * h, 2 * w)
            return "" if right else f"a transposed convolution of {c} channels makes no {node.shape}"
    return ""


def _block(node: Node, block: Block) -> str:
    pieces, rest = node.inputs[: block.pieces], node.inputs[block.pieces :]
    if len(rest) != block.residual + block.gate:
        return f"a block reads {len(node.inputs)} maps"
    sizes = {(x.shape[0], *x.shape[2:]) for x in pieces}
    if len(sizes) != 1:
        return f"it reads maps of different sizes: {', '.join('x'.join(map(str, x.shape)) for x in pieces)}"
    (n, h, w), c = sizes.pop(), sum(x.channels for x in pieces)
    for stage in block.stages:
        if stage.c != c:
            return f"a convolution of {stage.c} channels reads {c}"
        sizes_here = _sizes(stage, h, w)
        if len(sizes_here) != 1:
            return "branches of different sizes stand side by side"
        (h, w), c = sizes_here.pop(), stage.o
    if node.shape != (n, c, h, w) or (block.residual and rest[0].shape != node.shape):
        return f"a block makes {n}x{c}x{h}x{w}, not {'x'.join(map(str, node.shape))}"
    return ""


def _sizes(stage: Stage | Slices, h: int, w: int) -> set[tuple[int, int]]:
    """Of the output; of branches side by side each one's."""
    if isinstance(stage, Slices):
        return {part.size(h, w) if part else (h, w) for _, _, part in stage.parts}
    return {stage.size(h, w)}
