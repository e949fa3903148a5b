"""Turn any name into text that terminals, pages and files accept, whatever bytes a file name has.

JSON does not need this: `json.dumps` escapes these characters, and reading restores the same name.
"""

import unicodedata

# The longest name or message, in characters, that is printed in full.
MAX_LENGTH = 2000
_GAP = " ... "


def printable(text: object) -> str:
    """Escape control characters, direction marks and unassigned characters. Line ends stay.

    A byte that is not UTF-8 is a lone surrogate in a file name, and becomes `\\udc80` to `\\udcff`.
    """
    lines = str(text).split("\n")
    return "\n".join(line if line.isprintable() else "".join(map(_visible, line)) for line in lines)


def one_line(text: object, *, most: int = MAX_LENGTH) -> str:
    """Like `printable`, but escape line ends too and cut out the middle of text longer than `most` characters."""
    line = printable(text).replace("\n", r"\n")
    if len(line) <= most:
        return line
    kept = most - len(_GAP)
    return line[: kept - kept // 2] + _GAP + line[len(line) - kept // 2 :]


def is_utf8(text: object) -> bool:
    """Whether other programs can read the text. A name in another encoding contains lone surrogates."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible(letter: str) -> str:
    """Return the character or its escape. Spaces of other widths are harmless and stay."""
    if letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode()
