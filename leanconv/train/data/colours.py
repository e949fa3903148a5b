"""The class of each mask colour: the option `colors` of a data reference.

colors=000000,ff0000,00ff00                     RRGGBB in the order of the classes, the background first
colors=background:000000,scratch:ff0000+00ff00  with names; several colours may be one class
colors=transparent,ffffff                       transparent pixels, whatever colour is stored in them
colors=labelmap.txt                             a file in the data's folder or elsewhere, a class a line:
                                                name #RRGGBB, name 255 0 0 or 255 0 0 name, parted by blanks,
                                                commas or colons
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from leanconv.errors import BadInput
from leanconv.files import read_bytes

TRANSPARENT = 1 << 24  # beside the 2^24 colours

_HEX = re.compile(r"#?([0-9a-fA-F]{6})\Z")
_NUMBERS = re.compile(r"(?:(?P<name>.*?)[\s,;:]+)?(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]*\Z")
_NUMBERS_FIRST = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]+(?P<name>\S.*)\Z")
_WORDS = re.compile(r"(?:(.*?)[\s,;:]+)?(#?[0-9a-fA-F]{6}|transparent)[\s,;:]*\Z")
_LARGEST = 1 << 20  # bytes of a file of colours


class ColourMap(NamedTuple):
    """Colours `0xRRGGBB` (or TRANSPARENT), the class index of each; the names of the classes, if given."""

    colours: tuple[int, ...]
    classes: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def number(self) -> int:
        """The number of classes."""
        return max(self.classes) + 1

    def without(self, colour: int) -> "ColourMap":
        """The map without one colour, and without its class if it has no other."""
        kept = [(key, place) for key, place in zip(self.colours, self.classes, strict=True) if key != colour]
        order = sorted({place for _, place in kept})
        if not order:
            raise BadInput(f"ignore={written(colour)}: colors= has no other colour")
        names = tuple(self.names[place] for place in order) if self.names else ()
        return ColourMap(tuple(key for key, _ in kept), tuple(order.index(place) for _, place in kept), names)


def read_colours(text: str, root: Path) -> ColourMap:
    """Read the option: a list, or a file in `root` or at its own path. Raises BadInput."""
    words = [word.strip() for word in text.split(",")]
    if all(_entry(word) for word in words):
        return _map([entry for word in words if (entry := _entry(word))], f"colors={text}")
    for path in (root / text, Path(os.path.expanduser(text))):
        if os.path.isfile(path):  # unlike Path's, False rather than an error for a name of any length
            return _file(path)
    raise BadInput(
        f"colors={text}: colours as 000000,ff0000,..., the background first, or a file of them; no such file"
    )


def colour_of(text: str) -> int | None:
    """`ff0000` (or `#ff0000`, or `transparent`) as a number; None for anything else."""
    if text == "transparent":
        return TRANSPARENT
    found = _HEX.match(text)
    return int(found[1], 16) if found else None


def written(colour: int) -> str:
    """A colour in the option's notation."""
    return "transparent" if colour == TRANSPARENT else f"{colour:06x}"


def _entry(word: str) -> tuple[str, list[int]] | None:
    """`scratch:ff0000+00ff00` as name and colours; None for anything else."""
    name, _, colours = word.rpartition(":")
    found = [colour_of(part) for part in colours.split("+")]
    return (name, [colour for colour in found if colour is not None]) if None not in found else None


def _file(path: Path) -> ColourMap:
    """The classes of a file; its first line may be a headline, and lines that begin with # are remarks."""
    try:
        lines = read_bytes(path, most=_LARGEST).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read as a list of colours: {error}; save it as UTF-8") from error
    entries: list[tuple[str, list[int]]] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if found := _line(line):
            entries.append(found)
        elif line and not line.startswith("#") and entries:
            raise BadInput(f"{path}, line {number}: {line[:60]!r}; write name #RRGGBB, or name 255 0 0")
    if not entries:
        raise BadInput(f"{path}: holds no colour; write a class a line, name #RRGGBB or name 255 0 0")
    return _map(entries, str(path))


def _line(line: str) -> tuple[str, list[int]] | None:
    """Name and colour of a line; None without a colour."""
    if line.startswith("#") and not _HEX.match(line):
        return None
    if found := _NUMBERS.match(line) or _NUMBERS_FIRST.match(line):
        first = 1 if found.re is _NUMBERS_FIRST else 2
        red, green, blue = (int(found[place]) for place in range(first, first + 3))
        if max(red, green, blue) < 256:
            return (found["name"] or "").strip(), [red << 16 | green << 8 | blue]
    if found := _WORDS.match(line):
        colour = colour_of(found[2])
        return ((found[1] or "").strip(), [colour]) if colour is not None else None
    return None


def _map(entries: Sequence[tuple[str, Iterable[int]]], where: str) -> ColourMap:
    """One class per entry; entries of the same name share one."""
    order: dict[object, int] = {}
    classes: dict[int, int] = {}
    for place, (name, colours) in enumerate(entries):
        index = order.setdefault(name or place, len(order))
        for colour in colours:
            if classes.setdefault(colour, index) != index:
                raise BadInput(f"{where}: {written(colour)} stands for two classes; give each a colour of its own")
    named = [name for name, _ in entries if name]
    if named and len(named) < len(entries):
        raise BadInput(f"{where}: some classes have names and some have none; name all or none")
    return ColourMap(tuple(classes), tuple(classes.values()), tuple(dict.fromkeys(named)))
