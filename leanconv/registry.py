"""The registered operators, and the syntax of an operator with options: `hetconv(part=4)`."""

import ast
import difflib
import inspect
from collections.abc import Callable
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from leanconv.errors import BadInput, UnknownName

_OPERATORS: dict[str, type] = {}
T = TypeVar("T", bound=type)


def register(name: str) -> Callable[[T], T]:
    """Class decorator: register the operator as `name`, for the command line and `plan`."""

    def add(cls: T) -> T:
        if name in _OPERATORS:
            raise ValueError(f"operator {name!r} is registered twice: {_OPERATORS[name]} and {cls}")
        cls.name = name  # type: ignore[attr-defined]
        _OPERATORS[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Return the names of all operators, in the order of registration."""
    return list(_OPERATORS)


def get(name: str) -> Any:
    """Return the class of a registered operator. Raises UnknownName, which lists the known names."""
    if name not in _OPERATORS:
        raise UnknownName(f"unknown operator {name!r}{nearest(name, names())}; known: {', '.join(names())}")
    return _OPERATORS[name]


def nearest(word: str, known: list[str]) -> str:
    """Return ` (did you mean 'splconv'?)`, or "" if no known word is similar."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def options_of(cls: type) -> dict[str, Any]:
    """Return an operator's own options and defaults: the keyword-only arguments that `nn.Conv2d` lacks."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


_WORDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a word in quotes",
    tuple: "whole numbers such as (4, 4)", NoneType: "None",
}  # fmt: skip


def misfit(cls: type, options: dict[str, Any]) -> str | None:
    """Return why a value does not fit the option's type in the operator's signature, or None."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    for key, value in options.items():
        hint = hints.get(key, Any)
        kinds = [get_origin(kind) or kind for kind in get_args(hint) or (hint,)]
        if set(kinds) <= set(_WORDS) and not any(_fits(value, kind) for kind in kinds):
            return f"{key}={value!r} must be {' or '.join(_WORDS[kind] for kind in kinds)}"
    return None


def _fits(value: Any, kind: Any) -> bool:
    accepted = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split `"hetconv(part=4)"` into `("hetconv", {"part": 4})`. Only literal keyword arguments; no code runs.

    Raises: UnknownName for an unknown operator or option, BadInput for a value of a wrong type or unreadable text.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadInput(f"operator {text[:80]!r} is not readable; write it like splconv(alpha=0.5)") from error
    if isinstance(tree, ast.Name):
        get(tree.id)
        return tree.id, {}
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        raise BadInput(f"operator {text[:80]!r} is not readable; write it like splconv(alpha=0.5)")
    name, known = tree.func.id, options_of(get(tree.func.id))
    if tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise BadInput(f"operator {text[:80]!r}: options are written name=value, like splconv(alpha=0.5)")
    options: dict[str, Any] = {}
    for keyword in tree.keywords:
        word = str(keyword.arg)
        if word not in known:
            raise UnknownName(
                f"{name} has no option {word!r}{nearest(word, list(known))}; it has: {', '.join(known) or 'none'}"
            )
        try:
            options[word] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise BadInput(
                f"{name}: {word}= takes a plain value (number, text, True, None), not an expression"
            ) from error
    if reason := misfit(get(name), options):
        raise BadInput(f"{name}: {reason}")
    return name, options


def unparse(name: str, options: dict[str, Any]) -> str:
    """Return the operator string of a name and its options, the inverse of `parse`."""
    inside = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}({inside})" if inside else name
