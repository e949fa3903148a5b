"""Names as text that a terminal, a page and a file can take, whatever bytes a file's name has.

JSON needs none of this: `json.dumps` escapes such letters itself, and reading it back gives the very same name.
"""

import unicodedata

# The longest name or message that is printed whole: a line of text, not a page.
LONGEST = 2000
_GAP = " ... "


def printable(text: object) -> str:
    """The text with its line ends. What moves a cursor, turns the writing around or is no letter becomes its escape.

    A byte that is not UTF-8 stands in a name as half a letter, and becomes `\\udc80` to `\\udcff`.
    """
    lines = str(text).split("\n")
    return "\n".join(line if line.isprintable() else "".join(map(_visible, line)) for line in lines)


def one_line(text: object, *, most: int = LONGEST) -> str:
    """`printable`, and line ends are escapes too; the middle of more than `most` letters is left out."""
    line = printable(text).replace("\n", r"\n")
    if len(line) <= most:
        return line
    kept = most - len(_GAP)
    return line[: kept - kept // 2] + _GAP + line[len(line) - kept // 2 :]


def is_utf8(text: object) -> bool:
    """Whether other programs can take the text: a name in another encoding has half letters in it."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible(letter: str) -> str:
    """The letter, or its escape; spaces of other widths than ours hide nothing."""
    if letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode()
