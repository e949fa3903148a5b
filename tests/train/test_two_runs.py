"""Two runs and one folder: the second is refused, the first ends as if nobody had come."""

import pytest
from safetensors.torch import load_file

from leanconv.errors import BadInput
from leanconv.files import LOCK
from leanconv.runs import RunFolder
from leanconv.runs.lock import in_use, writing
from leanconv.train import loop
from leanconv.train.inference.score import read_metrics
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("leanconv.runs.lock._PATIENCE_S", 0.0)


@pytest.fixture
def recipe(tiny_data, tmp_path):
    def make(out="run", **settings):
        defaults = {"model": "leanconv:unet?base=2&levels=1", "data": str(tiny_data), "out": str(tmp_path / out)}
        return Recipe(**defaults | {"size": 16, "batch": 5, "steps": 4, "device": "cpu", "threads": 1} | settings)

    return make


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_run_into_a_folder_is_refused(recipe, monkeypatch, resume):
    """The first reported scores of the other's weights, and both ended well."""
    if resume:
        fit(recipe(steps=2), progress=False)
    real, refused = loop._Run._step, []

    def step(self, *batch):
        real(self, *batch)
        for again in (False, True):
            with pytest.raises(BadInput, match=r"in use by process .*leanconv train") as caught:
                fit(recipe(seed=0 if again else 1), resume=again, progress=False)
            refused.append(str(caught.value))

    monkeypatch.setattr(loop._Run, "_step", step)
    folder = fit(recipe(), resume=resume, progress=False)
    monkeypatch.undo()
    assert len(refused) == (4 if resume else 8)
    assert not any("\n" in text for text in refused)
    assert not (folder.path / LOCK).exists()
    alone = fit(recipe("alone", steps=2 if resume else 4), progress=False)
    if resume:
        alone = fit(recipe("alone"), resume=True, progress=False)
    mine, theirs = load_file(folder.weights), load_file(alone.weights)
    assert all((mine[key] == theirs[key]).all() for key in theirs)
    assert {**read_metrics(folder), "seconds": 0} == {**read_metrics(alone), "seconds": 0}


def test_a_run_that_is_refused_leaves_no_trace(recipe, tmp_path):
    with writing(tmp_path / "run", "leanconv convert"):
        with pytest.raises(BadInput, match=r"in use by .*leanconv convert"):
            fit(recipe(), progress=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    with pytest.raises(BadInput, match="nowhere"):
        fit(recipe("another", data=str(tmp_path / "nowhere")), progress=False)
    assert not list(tmp_path.iterdir())


def test_processes_that_train_together_share_one_lock(recipe, tmp_path):
    """The main one holds it; the others come in without, and write nothing."""
    with loop.claimed(recipe(), False, main=True) as folder:
        assert "leanconv train" in in_use(folder.path)
        with loop.claimed(recipe(), False, main=False) as other:
            assert other.path == folder.path
        assert "leanconv train" in in_use(folder.path)


@pytest.mark.parametrize("name", ["history.csv", "metrics.json", "report.html", "events/x", "export/model.onnx"])
def test_a_folder_of_other_files_is_not_trained_over(recipe, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(BadInput, match=rf"holds {name.split('/')[0]}, and a run would overwrite it: say out=another"):
        fit(recipe(), progress=False)
    assert path.read_text() == "mine"
    assert sum(each.is_file() for each in (tmp_path / "run").rglob("*")) == 1


def test_a_folder_that_holds_nothing_of_a_run_may_become_one(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    folder = fit(recipe(), progress=False)
    assert isinstance(folder, RunFolder)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
