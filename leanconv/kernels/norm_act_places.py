"""The syntax of `act(norm(x) + residual)` in a function, and `norm_act` in its place. See `rewritten`."""

import ast
from dataclasses import dataclass
from typing import Any

RUN = "_norm_act"  # what the new code calls
# Statements that a norm may be computed after instead of before: others may leave, or change how it is computed.
_HARMLESS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.If, ast.Pass)
Kinds = dict[str, str]  # dotted path as the source has it ("self.bn1", "F.relu") -> "norm", "act" or "identity"


def path_of(node: ast.AST) -> str:
    """`a.b.c` as it is written; "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    inner = path_of(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _mentions(node: ast.AST, name: str) -> int:
    return sum(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def _is_harmless(statement: ast.stmt) -> bool:
    return not any(
        isinstance(each, (ast.Yield, ast.YieldFrom, ast.Await))
        or (isinstance(each, ast.stmt) and not isinstance(each, _HARMLESS))
        for each in ast.walk(statement)
    )


@dataclass
class _Pending:
    """A variable that holds a norm's result, perhaps with a residual added; where both are in the new block."""

    callees: list[ast.expr]
    x: ast.expr
    at: int
    plus: ast.expr | None = None
    plus_at: int = -1
    in_place: bool = False


class Places(ast.NodeTransformer):
    """Rewrites a block of statements, and then what is inside of one statement.

    Attributes: norms: the paths of the norms whose places it found.
    """

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.norms: list[str] = []
        self._temporary = 0

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        pending: dict[str, _Pending] = {}
        made: list[ast.stmt] = []
        for given in statements:
            statement: Any = self.visit(given)
            target = _target(statement)
            if not self._completed(statement, target, pending, made):
                grown = target if _added(statement, target, pending, made) else ""
                waits = _is_harmless(statement)
                for name in list(pending):
                    if name != grown and (not waits or _mentions(statement, name)):
                        del pending[name]
            if isinstance(statement, ast.Assign) and target and (chain := self._chain(statement.value)):
                pending[target] = _Pending(*chain, at=len(made))
            made.append(statement)
        return made

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in ("body", "orelse", "finalbody"):
            value = getattr(node, name, None)
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, self.block(value))
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                setattr(node, name, self.visit(value))
            elif isinstance(value, list) and not (value and isinstance(value[0], ast.stmt)):
                value[:] = [self.visit(each) if isinstance(each, ast.AST) else each for each in value]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node = self.generic_visit(node)  # type: ignore[assignment]
        if not self._is_act(node):
            return node
        value, (left, right) = node.args[0], _summands(node.args[0])
        if chain := self._chain(value):
            return self._call(node, *chain)
        if left is not None and right is not None:
            if chain := self._chain(left):
                return self._call(node, *chain, plus=right)
            if chain := self._chain(right):
                return self._call(node, *chain, plus=left, plus_first=True)
        return node

    def _is_act(self, node: ast.AST) -> bool:
        """Whether it calls an activation with one expression; it may say that it works in place."""
        return (
            isinstance(node, ast.Call)
            and self.kinds.get(path_of(node.func)) == "act"
            and len(node.args) == 1
            and not isinstance(node.args[0], ast.Starred)
            and all(each.arg == "inplace" and isinstance(each.value, ast.Constant) for each in node.keywords)
        )

    def _chain(self, node: ast.expr) -> tuple[list[ast.expr], ast.expr] | None:
        """The functions of `f(norm(g(x)))`, with `nn.Identity` for f and g, and x; None for anything else."""
        callees: list[ast.expr] = []
        while isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
            if self.kinds.get(path_of(node.func)) not in ("norm", "identity") or isinstance(node.args[0], ast.Starred):
                break
            callees.append(node.func)
            node = node.args[0]
        norms = [each for each in callees if self.kinds[path_of(each)] == "norm"]
        return (callees, node) if len(norms) == 1 else None

    def _call(
        self, act: ast.Call, callees: list[ast.expr], x: ast.expr, plus: ast.expr | None = None, *,
        plus_first: bool = False, in_place: bool = False,
    ) -> ast.Call:  # fmt: skip
        """A call of `norm_act`. Arguments are computed in the order in which they stand."""
        self.norms += [path for path in map(path_of, callees) if self.kinds[path] == "norm"]
        keywords = [ast.keyword("x", x)]
        if plus is not None:
            keywords.insert(0 if plus_first else 1, ast.keyword("plus", plus))
            keywords.append(ast.keyword("in_place", ast.Constant(in_place)))
        made = ast.Call(ast.Name(RUN, ast.Load()), [act.func, ast.Tuple(callees, ast.Load())], keywords)
        return ast.copy_location(made, act)

    def _completed(self, statement: ast.stmt, target: str, pending: dict[str, _Pending], made: list[ast.stmt]) -> bool:
        """Whether the statement applies an activation to a pending variable that nothing reads afterwards."""
        if not isinstance(statement, (ast.Assign, ast.Return)) or statement.value is None:
            return False
        for name, found in list(pending.items()):
            if _mentions(statement.value, name) != 1 or (isinstance(statement, ast.Assign) and target != name):
                continue
            for node in ast.walk(statement.value):
                if self._is_act(node) and self._finish(statement, node, name, found, made):  # type: ignore[arg-type]
                    pending.clear()
                    return True
        return False

    def _finish(
        self, statement: ast.Assign | ast.Return, node: ast.Call, name: str, found: _Pending, made: list[ast.stmt]
    ) -> bool:
        value, plus, in_place = node.args[0], found.plus, found.in_place
        left, right = _summands(value)
        if plus is None and left is not None and right is not None and name in (path_of(left), path_of(right)):
            plus = right if path_of(left) == name else left
        elif path_of(value) != name:
            return False
        x = self._kept(made, found.at, found.x)
        if found.plus is not None:
            plus = self._kept(made, found.plus_at, found.plus)
        call = self._call(node, found.callees, x, plus, in_place=in_place)
        statement.value = _Swapped(node, call).visit(statement.value)
        return True

    def _kept(self, made: list[ast.stmt], at: int, value: ast.expr) -> ast.Name:
        """Put the statement `temporary = value` in the place of another; the variable."""
        self._temporary += 1
        name = f"_norm_act_{self._temporary}"
        made[at] = ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], value), made[at])
        return ast.Name(name, ast.Load())


class _Swapped(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: Any) -> Any:
        return self.new if node is self.old else super().visit(node)


def _target(statement: ast.stmt) -> str:
    """The one variable that a statement assigns to; "" for others."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


def _summands(node: ast.expr | None) -> tuple[ast.expr | None, ast.expr | None]:
    return (node.left, node.right) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) else (None, None)


def _added(statement: ast.stmt, target: str, pending: dict[str, _Pending], made: list[ast.stmt]) -> bool:
    """Whether the statement adds something to a pending variable, which then waits for its activation."""
    found = pending.get(target)
    if found is None or found.plus is not None:
        return False
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add):
        plus: ast.expr | None = statement.value
    else:
        left, right = (
            _summands(getattr(statement, "value", None)) if isinstance(statement, ast.Assign) else (None, None)
        )
        plus = right if left is not None and path_of(left) == target else left
        if plus is left and (right is None or path_of(right) != target):
            return False
    if plus is None or _mentions(plus, target):
        return False
    found.plus, found.plus_at, found.in_place = plus, len(made), isinstance(statement, ast.AugAssign)
    return True
