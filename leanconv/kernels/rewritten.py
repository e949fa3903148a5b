"""Places in a model where an activation follows a BatchNorm, found in the source of the modules' `forward`.

    out = self.bn2(out)                       x = out
    if self.downsample is not None:           if self.downsample is not None:
        identity = self.downsample(x)    →        identity = self.downsample(x)
    out += identity                           plus = identity
    out = self.relu(out)                      out = norm_act(self.relu, (self.bn2,), x, plus=plus, in_place=True)

Only what surely stays the same is rewritten: `act(norm(x))`, `act(norm(x) + r)`, and the same through a variable that
nothing else reads. Everything else of the function stays as it is, conditions and loops too. `norm_act` decides in
each call whether a kernel runs. A module whose source is not what runs, or that has none, is left alone. An
`nn.Sequential` needs no source: its `forward` is known.
"""

import __future__

import ast
import copy
import dis
import functools
import inspect
import itertools
import operator
import textwrap
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from leanconv.kernels.norm_act import kind, norm_act
from leanconv.kernels.norm_act_places import RUN, Kinds, Places, path_of

_CLASS = "__class__"
_FUTURE = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


def rewritten(module: nn.Module) -> tuple[types.MethodType, list[str]] | None:
    """A `forward` for this module with norms and activations in one, and these norms' names; None: there are none."""
    if "forward" in module.__dict__ and not _is_its_own(module):
        return None
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        names = [name for name, norm, act in _neighbours(module) if type(norm) is nn.BatchNorm2d and kind(act)]
        return (types.MethodType(forward, module), names) if names else None
    function = type(module).forward
    if not isinstance(function, types.FunctionType) or not any(type(m) is nn.BatchNorm2d for m in module.children()):
        return None
    if (tree := _source(function)) is None:
        return None
    made = _compiled(function, tuple(sorted(_kinds(module, function, tree).items())))
    return None if made is None else (types.MethodType(made[0], module), made[1])


def _is_its_own(module: nn.Module) -> bool:
    """Whether the module's `forward` is its class's: so a pickle has it that was made while kernels were in use."""
    own = module.__dict__["forward"]
    return isinstance(own, types.MethodType) and own.__self__ is module and own.__func__ is type(module).forward


def _neighbours(module: nn.Sequential) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    parts = list(module.named_children())
    for (name, part), (_, following) in itertools.pairwise(parts):
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
    if any(isinstance(each, (ast.Global, ast.Nonlocal)) for each in ast.walk(tree)):
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
    outer = ast.parse(f"def make({RUN}, {_CLASS}):\n    return forward")
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


@functools.lru_cache(512)
def _compiled(
    function: types.FunctionType, kinds: tuple[tuple[str, str], ...]
) -> tuple[Callable[..., Any], list[str]] | None:
    tree = copy.deepcopy(_source(function))
    if tree is None:
        return None
    places = Places(tree, dict(kinds))
    tree.body = places.block(tree.body)
    if not places.norms:
        return None
    return _made_of(function, tree), [name.partition(".")[2] for name in places.norms]


def _kinds(module: nn.Module, function: types.FunctionType, tree: ast.FunctionDef) -> Kinds:
    """What the functions are that the source calls."""
    own, found = tree.args.args[0].arg, {}
    norms: dict[str, nn.Module] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (path := path_of(node.func)):
            root, *rest = path.split(".")
            value = module if root == own else function.__globals__.get(root)
            for name in rest:
                value = _part(value, name)
            if type(value) is nn.BatchNorm2d:
                norms[path] = value
            elif type(value) is nn.Identity or kind(value) is not None:
                found[path] = "identity" if type(value) is nn.Identity else "act"
    # A norm of two names: which of its calls is the first, the source does not show.
    times = Counter(map(id, norms.values()))
    return found | {path: "norm" for path, norm in norms.items() if times[id(norm)] == 1}


def _part(value: Any, name: str) -> Any:
    """A submodule or an attribute; no property runs for it."""
    if isinstance(value, nn.Module) and name in value._modules:
        return value._modules[name]
    found = inspect.getattr_static(value, name, None)
    return found.__func__ if isinstance(found, staticmethod) else found
