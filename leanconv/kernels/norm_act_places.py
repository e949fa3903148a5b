"""The syntax of `act(norm(x) + residual)` in a function, and `norm_act` in its place. See `rewritten`."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

RUN = "_norm_act"  # what the new code calls
# Statements that a norm may be computed after instead of before: others may leave, or change how it is computed.
_HARMLESS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.If, ast.Pass)
# What may read a variable at another time than its own line.
_SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp, ast.Try, ast.TryStar,
)  # fmt: skip
# Expressions that compute each of their parts once.
_STRAIGHT = (
    ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.List, ast.Dict, ast.Starred, ast.Attribute,
    ast.Subscript,
)  # fmt: skip
Kinds = dict[str, str]  # dotted path as the source has it ("self.bn1", "F.relu") -> "norm", "act" or "identity"


def path_of(node: ast.AST) -> str:
    """`a.b.c` as it is written; "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    inner = path_of(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _mentions(node: ast.AST, name: str) -> int:
    return sum(_is(each, name) for each in ast.walk(node))


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _reads(node: ast.AST, name: str) -> int:
    """How often it takes the variable as an operand: a new tensor results. A call could write into the variable."""
    found = int(_is(node, name))
    for each in ast.walk(node):
        if isinstance(each, ast.BinOp):
            found += _is(each.left, name) + _is(each.right, name)
        elif isinstance(each, ast.AugAssign):
            found += _is(each.value, name)
    return found


def _straight(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions in one that are computed once whenever it is."""
    yield node
    if isinstance(node, _STRAIGHT):
        for each in ast.iter_child_nodes(node):
            yield from _straight(each)


def _is_harmless(statement: ast.stmt) -> bool:
    return not any(
        isinstance(each, (ast.Yield, ast.YieldFrom, ast.Await))
        or (isinstance(each, ast.stmt) and not isinstance(each, _HARMLESS))
        for each in ast.walk(statement)
    )


@dataclass
class _Pending:
    """A variable that holds a norm's result, perhaps with a residual added; where both are in the new block.

    Attributes: reads: variables whose tensors the norm or the addition still read.
    """

    callees: list[ast.expr]
    x: ast.expr
    at: int = -1
    reads: set[str] = field(default_factory=set)
    plus: ast.expr | None = None
    plus_at: int = -1
    in_place: bool = False


class Places(ast.NodeTransformer):
    """Rewrites a block of statements, and then what is inside of one statement.

    Attributes: norms: the paths of the norms whose places it found.
    """

    def __init__(self, function: ast.FunctionDef, kinds: Kinds) -> None:
        self.kinds = kinds
        self._own = function.args.args[0].arg
        # Inner functions may read these whenever they are called, handlers of exceptions whenever one comes.
        scopes = [each for each in ast.walk(function) if isinstance(each, _SCOPES) and each is not function]
        self._shared = {name for each in scopes for name in _names(each)}
        self.norms: list[str] = []
        self._temporary = 0

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        pending: dict[str, _Pending] = {}
        made: list[ast.stmt] = []
        for given in statements:
            statement: Any = self.visit(given)
            target = _target(statement)
            for name in [name for name, found in pending.items() if self._disturbs(statement, found)]:
                del pending[name]
            if not self._completed(statement, target, pending, made):
                grown = target if _added(statement, target, pending, made) else ""
                if grown and (plus := pending[grown].plus):
                    pending[grown].reads |= _names(plus) - {self._own}
                waits = _is_harmless(statement)
                for name in list(pending):
                    # Nothing stands between an addition and its activation: it could change what is added.
                    if name != grown and (not waits or _mentions(statement, name) or pending[name].plus is not None):
                        del pending[name]
            ours = isinstance(statement, ast.Assign) and target and target not in self._shared
            if ours and (chain := self._chain(statement.value)):
                pending[target] = _Pending(*chain, at=len(made), reads=self._read(chain[1]) - {target})
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
            if (chain := self._chain(left)) and not self._disturbs(right, _Pending(*chain, reads=self._read(chain[1]))):
                return self._call(node, *chain, plus=right)
            if chain := self._chain(right):
                return self._call(node, *chain, plus=left, plus_first=True)
        return node

    def _read(self, x: ast.expr) -> set[str]:
        """Variables whose tensors an expression may hand on. A module of this one makes a new tensor."""
        made = isinstance(x, ast.Call) and path_of(x.func).startswith(f"{self._own}.")
        return set() if made else _names(x) - {self._own}

    def _disturbs(self, node: ast.AST, found: _Pending) -> bool:
        """Whether it calls the same norm, whose statistics move in order, or may write into what is still read."""
        norms = {path for path in map(path_of, found.callees) if self.kinds[path] == "norm"}
        return any(path_of(each) in norms for each in ast.walk(node)) or any(
            _mentions(node, name) != _reads(node, name) for name in found.reads
        )

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
            for node in _straight(statement.value):
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
