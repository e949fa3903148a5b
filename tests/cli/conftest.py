"""The command line in this process."""

import sys

import pytest

from leanconv.cli.main import main


@pytest.fixture
def leanconv(monkeypatch, capsys):
    """Call `leanconv WORDS...`: (exit code, what it printed, what it said on standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["leanconv", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        return code, *capsys.readouterr()

    return call
