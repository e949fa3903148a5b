"""How rewrite rules are applied. A rule looks at one node, and either rewrites the graph around it and returns True, or
returns False.

Rules run until none applies. A rule may fail at a node, or leave a malformed node there. Then the graph is restored,
that rule is barred from that node, and the table of blocks states the reason.
"""

from collections.abc import Callable, Sequence, Set

from leanconv.engine.fused.ir.graph import Graph, Node, Users

Rule = Callable[[Graph, Node, Users], bool]


class _Failed(Exception):
    """A rule, the node it was tried at, and what went wrong."""

    def __init__(self, rule: Rule, node: Node, why: str) -> None:
        super().__init__(why)
        self.rule, self.node, self.why = rule, node, why


def run_to_fixpoint(graph: Graph, rules: Sequence[Rule]) -> None:
    """Apply all of `rules` in place, but for those that fail at a node."""
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
    if done and (why := node.op.verify(node)):
        raise _Failed(rule, node, why)
    return done
