"""Any name becomes text that a terminal, a page and a file can take, and the wrong name is still told."""

import io
import json
import os

import pytest

from leanconv.errors import BadInput
from leanconv.table import table
from leanconv.text import MAX_LENGTH, one_line, printable

# What people's and attackers' file names hold: a cursor command, line ends, a bidi control, bytes that are no UTF-8.
HOSTILE = {
    "esc": "a\x1b[2K\rall is well",
    "c1": "a\x9b2J",
    "newline": "a\nerror: none",
    "separator": "a\u2028b\x85c\x0bd",
    "bidi": "gpj.\u202egnp.a",
    "not_utf8": os.fsdecode(b"caf\xe9"),
    "half": "\ud83d",
    "markup": "[red]a[/] [/b] \\[x",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_name_is_one_printable_line(name):
    line = one_line(name)
    assert line.isprintable()
    line.encode()
    assert "a" in line or line == r"\ud83d"


@pytest.mark.parametrize("name", ["é", "日本\u3000語.png", "fran\xa0çais", "Ж (1) [2].tif", "😀", "مرحبا"])
def test_letters_of_every_script_stay(name):
    assert one_line(name) == name


def test_line_ends_of_a_text_stay_and_those_of_a_name_do_not():
    assert printable("one\ntwo\x1b") == "one\ntwo\\x1b"
    assert one_line("one\ntwo") == r"one\ntwo"


def test_a_name_of_any_length_is_a_line():
    line = one_line("begin" + "x" * 10**6 + "end")
    assert len(line) == MAX_LENGTH
    assert line.startswith("beginxxx")
    assert line.endswith("xxxend")


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_errors_and_tables_hold_it_as_one_line(name):
    assert str(BadInput(f"{name}: cannot be read")) == f"{one_line(name)}: cannot be read"
    text = table(["image", name], [[name, 1]], title=name, note=[name, "fine"])
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("\n") == 5
    text.encode()
    io.StringIO(text).readlines()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_json_gives_the_very_name_back(name):
    written = json.dumps({"image": name})
    written.encode("ascii")
    assert json.loads(written)["image"] == name
