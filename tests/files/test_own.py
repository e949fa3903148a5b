"""Only what leanconv wrote is replaced without asking."""

import json
import os

import pytest

from leanconv.errors import BadInput
from leanconv.files import check_own, check_report, origin, write_atomic
from leanconv.table import table


def test_a_file_that_says_that_it_is_ours(tmp_path):
    path = tmp_path / "page.html"
    check_own(path, False)
    for content, ours in ((b"", True), (b"<p>This page was " + origin().encode(), True), (b"<p>mine", False)):
        path.write_bytes(content)
        if ours:
            check_own(path, False)
        else:
            with pytest.raises(BadInput, match=r"page\.html is there already, and leanconv did not write it.*--overw"):
                check_own(path, False)
        check_own(path, True)


def test_what_belongs_to_a_file_that_is_not_there_is_somebody_elses(tmp_path):
    main, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    weights.write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"m\.bin is there already"):
        check_own(main, False, weights)
    check_own(main, True, weights)
    main.write_text(origin())
    check_own(main, False, weights)


@pytest.mark.parametrize("what", ["pipe", "device", "loop"])
def test_what_is_no_file_is_not_ours(tmp_path, what):
    path = tmp_path / "out"
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
    }[what]()
    for check in (lambda: check_own(path, False), lambda: check_report(path)):
        with pytest.raises(BadInput, match="leanconv did not write it"):
            check()


REPORT = {"rows": [1], "device": "cpu", "total": 2}


@pytest.mark.parametrize(
    ("name", "content", "early", "late"),
    [
        ("a.json", json.dumps(REPORT), True, True),
        ("a.json", json.dumps({**REPORT, "more": 1}), True, True),
        ("a.json", '{"thesis": 1, "rows": 2}', True, False),
        ("a.json", "[1]", False, False),
        ("a.json", "mine", False, False),
        ("a.json", "[" * 100_000, False, False),
        ("a.json", "", True, True),
        ("a.txt", table(["a", "b"], [[1, 2]]), True, True),
        ("a.txt", table(["a", "b"], []), True, True),
        ("a.txt", json.dumps(REPORT), True, True),  # a plan is JSON under any name
        ("a.txt", "mine\n----\nthesis", False, False),
        ("a.txt", "\x00\udcff", False, False),
        ("a", "#!/bin/sh\nrm thesis", False, False),
    ],
)
def test_a_report_is_known_by_its_form(tmp_path, name, content, early, late):
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    for numbers, ours in ((None, early), (REPORT, late)):
        if ours:
            check_report(path, numbers)
        else:
            with pytest.raises(BadInput, match=rf"{name} is there already"):
                check_report(path, numbers)


def test_what_came_since_is_looked_at_right_before_it_would_go(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(BadInput, match="already"):
        write_atomic(path, "new", check=lambda: check_report(path))
    assert path.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
