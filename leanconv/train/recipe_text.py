"""A recipe's values as text: `key=value` words, TOML entries, and how they are shown in messages."""

import json
from collections.abc import Callable
from typing import Any

from leanconv.errors import BadInput
from leanconv.text import one_line
from leanconv.train.unknown_key import unknown_key

TOO_LARGE = 2**63  # for torch's seeds, and for what a run can count


def word(text: str, fields: dict[str, Any]) -> tuple[str, Any]:
    """`lr=0.1` as `("lr", 0.1)`; only the first `=` divides, so that model references survive."""
    key, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"{text!r}: settings are written key=value, like lr=0.001")
    kind = _known(key.strip(), fields, "command line")
    try:
        parsed = _READERS[kind](value.strip())
    except ValueError as error:
        raise BadInput(f"{key}={shown(value)}: {key} takes {_KINDS[kind]}") from error
    return key.strip(), parsed


def typed(key: str, value: Any, fields: dict[str, Any], where: str) -> Any:
    """A file's value, checked against the type of its key; the only conversion is 1 to 1.0."""
    kind = _known(key, fields, where)
    if kind == "float" and type(value) is int and abs(value) < TOO_LARGE:
        return float(value)
    if kind == "tuple" and type(value) is int:
        return (shown(value),)
    if kind == "tuple" and type(value) is list and all(type(each) is str for each in value):
        return tuple(value)
    if type(value).__name__ != kind:
        raise BadInput(f"{where}: {key} = {shown(value)}: {key} takes {_KINDS[kind]}")
    return value


def shown(value: Any) -> str:
    """A value for an error message; Python refuses to print numbers of thousands of digits."""
    try:
        return one_line(repr(value), most=80)
    except ValueError:
        return "a number of thousands of digits"


def toml(value: Any) -> str:
    """A value as TOML, whose text differs from JSON's by the letter 127 and by those beyond 16 bits."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _known(key: str, fields: dict[str, Any], where: str) -> str:
    if key not in fields:
        raise unknown_key(key, list(fields), where)
    kind = fields[key]
    return kind if isinstance(kind, str) else str(kind.__name__)


_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text in quotes",
    "tuple": 'names, ["background", "scratch"]',
}  # fmt: skip


def _boolean(text: str) -> bool:
    words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


_READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _boolean, "str": str, "tuple": _names}
