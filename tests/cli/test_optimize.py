"""`leanconv optimize`: its help, and the line about a budget that was too small."""

import pytest

from leanconv.cli.common import ENGINES
from leanconv.engine.candidates import CANDIDATES, EAGER


def test_the_engines_that_help_lists_are_those_there_are():
    assert (EAGER, *CANDIDATES) == ENGINES


@pytest.mark.parametrize("command", ["optimize", "bench"])
def test_help_lists_every_engine(leanconv, command):
    text = leanconv(command, "--help")[1]
    for name in ENGINES:
        assert name in text, name


def test_a_budget_that_was_too_small_is_the_first_line(leanconv):
    words = ("leanconv:unet", "base=4", "--input", "1,3,32,32", "--engines", "compile", "--budget", "2")
    _, printed, _ = leanconv("optimize", *words)
    assert printed.startswith("budget_s=2 was too small for compile; budget_s=")
