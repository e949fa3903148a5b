"""The built-in recipes: one TOML file each in this folder, part of the package. `leanconv train NAME` takes them.

A file opens with comments that this room reads: a paragraph on what the recipe is for, an empty comment line, and
indented commands. A paragraph that begins with "Draft" says what was not run.
"""

import os
import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput, UnknownName
from leanconv.files import read_toml
from leanconv.registry import nearest
from leanconv.text import one_line

_SUFFIX = ".toml"
_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z])")


@dataclass(frozen=True)
class BuiltIn:
    """One built-in recipe.

    Attributes:
        text: the whole file.
        purpose: what it is for, one sentence.
        commands: how it is called, the plain command first.
        draft: true if it was not run as it stands.
    """

    name: str
    text: str

    @property
    def values(self) -> dict[str, Any]:
        return tomllib.loads(self.text)

    @property
    def purpose(self) -> str:
        return _SENTENCE.split(" ".join(self._paragraphs[0]))[0]

    @property
    def commands(self) -> tuple[str, ...]:
        return tuple(line.strip() for line in self._comments if line.startswith("  "))

    @property
    def draft(self) -> bool:
        return "Draft" in " ".join(self._comments)

    @property
    def _comments(self) -> list[str]:
        """The comments above the first setting, without their signs."""
        lines = self.text.splitlines()
        head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return [line[2:] for line in lines[:head]]

    @property
    def _paragraphs(self) -> list[list[str]]:
        found: list[list[str]] = [[]]
        for line in self._comments:
            if line:
                found[-1].append(line)
            else:
                found.append([])
        return found


def names() -> list[str]:
    """The names of the built-in recipes, in alphabetical order."""
    found = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX))


def get(name: str) -> BuiltIn:
    """The built-in recipe of that name. Raises UnknownName, which lists the known names."""
    if name not in names():
        raise UnknownName(f"no recipe is called {_shown(name)}{_known(name)}")
    return BuiltIn(name, files(__name__).joinpath(f"{name}{_SUFFIX}").read_text(encoding="utf-8"))


def read(recipe: str | Path) -> dict[str, Any]:
    """The settings of a recipe: of the file at that path, else of the built-in recipe of that name.

    Raises: UnknownName for a plain word that is neither. BadInput for a path without a file, or for an unusable file.
    """
    word = str(recipe)
    if os.path.isfile(word):
        return read_toml(word)
    if word in names():
        return get(word).values
    stem = Path(word).name.removesuffix(_SUFFIX)
    if os.path.lexists(word) or word != stem:  # a folder, a pipe, or a path
        try:
            return read_toml(word)
        except BadInput as error:
            close = stem if stem in names() else next(iter(get_close_matches(stem, names(), n=1)), "")
            hint = f"; the built-in recipe is called by its name: leanconv train {close}" if close else ""
            raise BadInput(f"{error}{hint}") from error
    raise UnknownName(f"{_shown(word)} is no file, no run folder and no built-in recipe{_known(word)}")


def _known(word: str) -> str:
    return f"{nearest(word, names())}; known: {', '.join(names())} (`leanconv recipes` says what for)"


def _shown(word: str) -> str:
    return one_line(repr(word), most=80)
