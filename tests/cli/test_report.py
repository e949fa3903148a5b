"""`leanconv report`: one file, the same numbers as JSON, one clear line for what is wrong."""

import json
import subprocess
import sys

import pytest

from leanconv.runs import RunFolder, load

pytest.importorskip("jinja2", reason="the report needs jinja2")
pytest.importorskip("matplotlib", reason="the report needs matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("cli") / "lean")
    folder.path.mkdir()
    folder.recipe.write_text('data = "nowhere"\nsize = 32\n')
    folder.write_model("leanconv:unet?base=4&levels=2")
    folder.save_model(load("leanconv:unet?base=4&levels=2"))
    return folder


@pytest.mark.slow
def test_json_on_standard_output_and_a_page_beside(run, tmp_path):
    out = tmp_path / "r.html"
    words = ["report", run.path, "--out", out, "--budget", "0.01", "--optimize", "0.01", "--threads", "1", "--json"]
    done = subprocess.run([sys.executable, "-m", "leanconv", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert numbers["runs"][0]["params"] > 0
    assert "1 thread" in numbers["measured"]
    assert any("cannot be read" in text for text in numbers["remarks"])
    assert f"leanconv report {run.path}" in out.read_text()


def test_what_is_no_run_is_one_line_and_no_file(leanconv, tmp_path):
    out = tmp_path / "r.html"
    code, _, err = leanconv("report", tmp_path / "nothing", "--out", out)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out.exists()
