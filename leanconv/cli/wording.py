"""Errors in the words of the command line: the `max_loss=0.0` of a function is the `--max-loss 0` that was typed."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import typer

# After `?`, `&`, `.` or `/` a name belongs to a reference or a path, and after `say ` to a recipe.
_BEFORE = r"(?<![\w?&./-])(?<!say )"
_VALUE = r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s:;,]+)"


def options_of(command: Callable[..., Any]) -> dict[str, str]:
    """Python name -> option of a command. A name that carries its unit, like `budget_s`, is the option `--budget`."""
    found = dict[str, str]()
    for name, parameter in inspect.signature(command).parameters.items():
        for each in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(each, typer.models.OptionInfo):
                words = (each.default, *(each.param_decls or ()))  # inside Annotated the first one is the "default"
                option = next((word for word in words if isinstance(word, str) and word.startswith("--")), "")
                found |= {name: option, f"{name}_s": option} if option else {}
    return found


def usage_said(message: str, options: Collection[str]) -> str:
    """The message of a usage error without its library's prefix. A value that is the name of an option is told so."""
    message = message.replace("Value error, ", "")
    value = re.search(r"'([\w-]+)' is not one of", message)
    if value is not None and f"--{value[1]}" in options and f"'--{value[1]}'" not in message:
        return f"{message.removesuffix('.')}; did you mean --{value[1]}?"
    return message


def as_typed(text: str, options: Mapping[str, str], arguments: Sequence[str]) -> str:
    """Name the options in an error's text as they are typed.

    A value that the user typed is shown as typed. A plain word of the language, such as `data` or `threshold`, stays as
    it is unless a value follows and the option was typed: references and recipes have such words too.
    """
    for name, option in options.items():
        typed = _typed(option, arguments)
        text = text.replace(f"{option} (or {name}=True)", option)  # both ways of saying it

        def said(match: re.Match[str], name: str = name, option: str = option, typed: str | None = typed) -> str:
            value = match["value"]
            if typed is not None and _same(typed, value):
                return f"{option} {typed}"
            elsewhere = any(re.search(rf"[?&]{name}={re.escape(value)}(?![^&])", word) for word in arguments)
            return match[0] if elsewhere or (typed is None and "_" not in name) else f"{option} {value}"

        text = re.sub(rf"{_BEFORE}{name}={_VALUE}", said, text)
        if "_" in name:
            text = re.sub(rf"{_BEFORE}{name}\b(?!=)", option, text)
    return text


def _typed(option: str, arguments: Sequence[str]) -> str | None:
    """The last value of an option on the command line, or None."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], ""]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


def _same(typed: str, value: str) -> bool:
    if typed == value.strip("'\""):
        return True
    try:
        return float(typed) == float(value)
    except ValueError:
        return False
