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


@pytest.fixture
def run_of_masks(tmp_path, tiny_data):
    from leanconv.models import build
    from leanconv.runs import RunFolder

    folder = RunFolder(tmp_path / "run")
    folder.write_model("leanconv:unet?base=2&levels=2", task="segment", classes=["background", "defect"])
    folder.save_model(build("unet", base=2, levels=2))
    folder.recipe.write_text(f'model = "leanconv:unet?base=2&levels=2"\ndata = "{tiny_data}"\nout = "x"\nsteps = 1\n')
    return folder.path, tiny_data / "test" / "images"
