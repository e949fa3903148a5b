"""Places in a model where an activation follows a BatchNorm, found in the source of the modules' `forward`.

    out = self.bn2(out)                       x = out
    if self.downsample is not None:           if self.downsample is not None:
        identity = self.downsample(x)    →        identity = self.downsample(x)
    out += identity                           plus = identity
    out = self.relu(out)                      out = norm_act(self.relu, (self.bn2,), x, plus=plus, in_place=True)

Only what surely stays the same is rewritten: `act(norm(x))`, `act(norm(x) + r)`, and the same through a variable that
nothing else reads. Everything else of the function stays as it is, conditions and loops too. `norm_act` decides in each
call whether a kernel runs. A module whose source is not what runs, or that has none, is left alone. `nn.Sequential` needs
no source: its `forward` is known.
"""

import __future__

import ast
import copy
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from leanconv.kernels.norm_act import kind, norm_act

_RUN, _CLASS = "_norm_act", "__class__"
_FUTURE = functools.reduce(lambda bits, name: bits | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0)
_LEAVES = (ast.Return, ast.Raise, ast.Break, ast.Continue, ast.Yield, ast.YieldFrom, ast.Await)
Kinds = dict[str, str]  # dotted path as the source has it ("self.bn1", "F.relu") -> "norm", "act" or "identity"
_made: dict[tuple[Any, ...], tuple[Callable[..., Any], list[str]] | None] = {}


def rewritten(module: nn.Module) -> tuple[types.MethodType, list[str]] | None:
    """A `forward` for this module with its norms and activations in one, and the names of these norms; None: there are none."""
    if "forward" in module.__dict__:
        return None
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        names = [name for name, norm, act in _neighbours(module) if type(norm) is nn.BatchNorm2d and kind(act)]
        return (types.MethodType(forward, module), names) if names else None
    function = type(module).forward
    if not isinstance(function, types.FunctionType) or not any(type(m) is nn.BatchNorm2d for m in module.children()):
        return None
    if (tree := _source(function)) is None:
        return None
    found = _kinds(module, function, tree)
    key = (function, tuple(sorted(found.items())))
    if key not in _made:
        _made[key] = _compiled(function, tree, found)
    made = _made[key]
    return None if made is None else (types.MethodType(made[0], module), made[1])


def _neighbours(module: nn.Sequential) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    parts = list(module.named_children())
    for (name, part), (_, following) in zip(parts, parts[1:], strict=False):
        yield name, part, following


def forward(self: nn.Sequential, input: Any) -> Any:
    """`nn.Sequential.forward`, by whose name it is pickled: a pickle holds the class's own."""
    parts, at = list(self), 0
    while at < len(parts):
        if at + 1 < len(parts) and type(parts[at]) is nn.BatchNorm2d and kind(parts[at + 1]) is not None:
            input = norm_act(parts[at + 1], (parts[at],), input)
            at += 2
        else:
            input = parts[at](input)
            at += 1
    return input


@functools.lru_cache(512)
def _source(function: types.FunctionType) -> ast.FunctionDef | None:
    """The function's tree without annotations; None where the source is not at hand, or not all of it."""
    if set(function.__code__.co_freevars) - {_CLASS} or function.__name__ != "forward":
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    if not isinstance(tree, ast.FunctionDef) or tree.decorator_list or not tree.args.args:
        return None
    ast.increment_lineno(tree, function.__code__.co_firstlineno - tree.lineno)
    tree.returns = None
    for node in ast.walk(tree.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    # Defaults are taken over as objects.
    tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
    tree.args.kw_defaults = [None if each is None else ast.Constant(None) for each in tree.args.kw_defaults]
    return tree if _steps(_made_of(function, tree).__code__) == _steps(function.__code__) else None


def _steps(code: types.CodeType) -> list[Any]:
    """What a function's code does, however it calls what its module imports: the compiler has two ways for that."""
    found: list[Any] = []
    for each in dis.get_instructions(code):
        if each.opname != "PUSH_NULL":
            value = _steps(each.argval) if isinstance(each.argval, types.CodeType) else each.argval
            jumps = each.opcode in dis.hasjrel or each.opcode in dis.hasjabs
            found.append((each.opname.replace("METHOD", "ATTR"), None if jumps else value))
    return found


def _made_of(function: types.FunctionType, tree: ast.FunctionDef) -> types.FunctionType:
    """A function of that tree, with the globals, defaults and class of another."""
    outer = ast.parse(f"def make({_RUN}, {_CLASS}):\n    return forward")
    body: Any = outer.body[0]
    body.body.insert(0, tree)
    ast.fix_missing_locations(outer)
    flags = function.__code__.co_flags & _FUTURE
    place: dict[str, Any] = {}
    exec(compile(outer, function.__code__.co_filename, "exec", flags, dont_inherit=True), function.__globals__, place)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    made: types.FunctionType = place["make"](norm_act, cells[_CLASS].cell_contents if _CLASS in cells else None)
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return made


def _compiled(
    function: types.FunctionType, tree: ast.FunctionDef, kinds: Kinds
) -> tuple[Callable[..., Any], list[str]] | None:
    places, tree = _Places(kinds), copy.deepcopy(tree)
    tree.body = places.block(tree.body)
    if not places.norms:
        return None
    return _made_of(function, tree), [name.partition(".")[2] for name in places.norms]


def _kinds(module: nn.Module, function: types.FunctionType, tree: ast.FunctionDef) -> Kinds:
    """What the functions are that the source calls."""
    own, found = tree.args.args[0].arg, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (path := _path(node.func)):
            root, *rest = path.split(".")
            value = module if root == own else function.__globals__.get(root)
            for name in rest:
                value = getattr(value, name, None)
            if type(value) is nn.BatchNorm2d or type(value) is nn.Identity:
                found[path] = "norm" if type(value) is nn.BatchNorm2d else "identity"
            elif kind(value) is not None:
                found[path] = "act"
    return found


def _path(node: ast.AST) -> str:
    """`a.b.c` as it is written; "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    inner = _path(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _mentions(node: ast.AST, name: str) -> int:
    return sum(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


@dataclass
class _Pending:
    """A variable that holds a norm's result, perhaps with a residual added; where both are in the new block."""

    callees: list[ast.expr]
    x: ast.expr
    at: int
    plus: ast.expr | None = None
    plus_at: int = -1
    in_place: bool = False


class _Places(ast.NodeTransformer):
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
            if not self._completed(statement, target, pending, made) and not _added(statement, target, pending, made):
                inside = [name for name in pending if _mentions(statement, name)]
                leaves = any(isinstance(each, _LEAVES) for each in ast.walk(statement))
                for name in list(pending) if leaves else inside:
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
            and self.kinds.get(_path(node.func)) == "act"
            and len(node.args) == 1
            and not isinstance(node.args[0], ast.Starred)
            and all(each.arg == "inplace" and isinstance(each.value, ast.Constant) for each in node.keywords)
        )

    def _chain(self, node: ast.expr) -> tuple[list[ast.expr], ast.expr] | None:
        """The functions of `f(norm(g(x)))`, with `nn.Identity` for f and g, and x; None for anything else."""
        callees: list[ast.expr] = []
        while isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
            if self.kinds.get(_path(node.func)) not in ("norm", "identity") or isinstance(node.args[0], ast.Starred):
                break
            callees.append(node.func)
            node = node.args[0]
        norms = [each for each in callees if self.kinds[_path(each)] == "norm"]
        return (callees, node) if len(norms) == 1 else None

    def _call(
        self, act: ast.Call, callees: list[ast.expr], x: ast.expr, plus: ast.expr | None = None, *,
        plus_first: bool = False, in_place: bool = False,
    ) -> ast.Call:  # fmt: skip
        """A call of `norm_act`. Arguments are computed in the order in which they stand."""
        self.norms += [path for path in map(_path, callees) if self.kinds[path] == "norm"]
        keywords = [ast.keyword("x", x)]
        if plus is not None:
            keywords.insert(0 if plus_first else 1, ast.keyword("plus", plus))
            keywords.append(ast.keyword("in_place", ast.Constant(in_place)))
        made = ast.Call(ast.Name(_RUN, ast.Load()), [act.func, ast.Tuple(callees, ast.Load())], keywords)
        return ast.copy_location(made, act)

    def _completed(
        self, statement: ast.stmt, target: str, pending: dict[str, _Pending], made: list[ast.stmt]
    ) -> bool:
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
        if plus is None and left is not None and right is not None and name in (_path(left), _path(right)):
            plus = right if _path(left) == name else left
        elif _path(value) != name:
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

    def visit(self, node: ast.AST) -> Any:
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
        left, right = _summands(getattr(statement, "value", None)) if isinstance(statement, ast.Assign) else (None, None)
        plus = right if left is not None and _path(left) == target else left
        if plus is left and (right is None or _path(right) != target):
            return False
    if plus is None or _mentions(plus, target):
        return False
    found.plus, found.plus_at, found.in_place = plus, len(made), isinstance(statement, ast.AugAssign)
    return True
