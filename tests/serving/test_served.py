"""Served: the model's answers on every engine, what is kept, and what a damaged or foreign choice costs."""

import json
import os

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput, UnknownName
from leanconv.models import build
from leanconv.runs.digest import of_model
from leanconv.serving import Served, forms, rule, shape
from leanconv.serving.kept import Choice, Kept

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build("unet", base=4, levels=2).eval()


@pytest.fixture
def lines():
    return []


def ready(kept: Kept, model: nn.Module, engine: str = "fused") -> None:
    """Store an engine as a race would that found it ten times as fast."""
    form = forms.prepared(model, X, engine)
    kept.store(Choice(engine=engine, eager_ms=0.5, engine_ms=0.05), form.store)


def kept_of(model, root, x=X):
    return Kept(root, of_model(model), x.shape, x.dtype)


def call(served, times=4):
    with torch.no_grad():
        return [served(X) for _ in range(times)]


def test_few_calls_are_the_models_own_and_their_seconds_are_kept(model, tmp_path, lines):
    served = Served(model, folder=tmp_path, say=lines.append, left=lambda: 3)
    for answer in call(served):
        assert torch.equal(answer, model(X))
    served.close()
    spent = kept_of(model, tmp_path).read().spent_s
    assert 0 < spent < rule.RACE_FROM_S
    again = Served(model, folder=tmp_path, say=lines.append, left=lambda: 3)
    call(again)
    again.close()
    assert kept_of(model, tmp_path).read().spent_s > spent
    assert lines == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fused", "openvino"])
def test_a_kept_engine_is_opened_and_agrees(model, tmp_path, lines, engine, monkeypatch):
    pytest.importorskip({"fused": "torch"}.get(engine, engine))
    monkeypatch.setattr(rule, "OPEN_S", -1.0)
    ready(kept_of(model, tmp_path), model, engine)
    monkeypatch.setattr(forms, "optimize", None)  # no race
    served = Served(model, folder=tmp_path, say=lines.append, left=lambda: 99)
    first, *later = call(served)
    assert torch.equal(first, model(X))
    for answer in later:
        torch.testing.assert_close(answer, first, rtol=1e-4, atol=1e-4)
    (state,) = served._shapes.values()
    assert state.engine == engine
    assert lines[0].startswith(f"engine {engine}: 0.05 ms for 1x3x32x32, 10 times as fast as eager; kept in")
    assert 0 < kept_of(model, tmp_path).read().open_s < 60
    if engine == "fused":  # other shapes borrow its form
        other = torch.rand(1, 3, 48, 32, generator=torch.Generator().manual_seed(1))
        monkeypatch.setattr(rule, "RACE_FROM_S", 0.0)
        with torch.no_grad():
            for _ in range(3):
                torch.testing.assert_close(served(other), model(other), rtol=1e-4, atol=1e-4)
        assert served._shapes[other.shape].engine == "fused"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bytes", "gone", "weights", "json"])
def test_a_damaged_choice_costs_its_speed_alone(model, tmp_path, lines, damage, monkeypatch):
    monkeypatch.setattr(rule, "OPEN_S", -1.0)
    kept = kept_of(model, tmp_path)
    ready(kept, model)
    place = kept.folder / kept.read().folder
    match damage:
        case "bytes":
            (place / "graph.json").write_bytes(b"{}")
        case "gone":
            (place / "graph.safetensors").unlink()
        case "json":
            (kept.folder / "choice.json").write_text('{"format": 1, "choice": [')
        case "weights":  # a choice of other weights under this model's name
            other = build("unet", base=4, levels=2).eval()
            ready(kept, other)
    served = Served(model, folder=tmp_path, say=lines.append, left=lambda: 20)
    for answer in call(served):
        assert torch.equal(answer, model(X))
    (state,) = served._shapes.values()
    assert state.form is None
    assert len(lines) == (0 if damage == "json" else 1)


def test_other_weights_threads_and_sizes_are_other_choices(model, tmp_path):
    ready(kept_of(model, tmp_path), model)
    assert kept_of(model, tmp_path).read().engine == "fused"
    assert kept_of(model, tmp_path, torch.rand(1, 3, 32, 64)).read().engine == ""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert kept_of(model, tmp_path).read().engine == ""
    torch.set_num_threads(before)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert kept_of(model, tmp_path).read().engine == ""


@pytest.mark.parametrize("folder", ["..", "../..", "/", "fused-", "eager-abc", "fused-a/b", 7])
def test_a_choice_names_no_folder_but_its_own(model, tmp_path, folder):
    """What it names is removed for the next choice: `..` would be the choices of all sizes."""
    other, kept = kept_of(model, tmp_path, torch.rand(1, 3, 32, 64)), kept_of(model, tmp_path)
    for each in (other, kept):
        each.write(Choice(engine="fused", eager_ms=0.5, engine_ms=0.05))
    stored = json.loads((kept.folder / "choice.json").read_text())
    stored["choice"]["folder"] = folder
    (kept.folder / "choice.json").write_text(json.dumps(stored))
    assert kept.read() == Choice()
    kept.store(Choice(engine="fused", engine_ms=0.05), lambda place: (place / "graph.json").write_text("{}"))
    assert other.read().engine == "fused"
    assert kept.read().files.keys() == {"graph.json"}


@pytest.mark.parametrize("name", ["spent_s", "open_s", "undecided"])
def test_a_number_that_no_float_holds_is_no_choice(model, tmp_path, name):
    kept = kept_of(model, tmp_path)
    kept.write(Choice(engine="fused", eager_ms=0.5, engine_ms=0.05))
    stored = json.loads((kept.folder / "choice.json").read_text())
    stored["choice"][name] = 10**400
    (kept.folder / "choice.json").write_text(json.dumps(stored))
    assert kept.read() == Choice()


def test_a_race_is_won_kept_and_said(model, tmp_path, lines, monkeypatch):
    monkeypatch.setattr(rule, "RACE_FROM_S", 0.0)
    monkeypatch.setattr(shape, "race_budget_s", lambda known, left: 60.0)
    served = Served(model, folder=tmp_path, say=lines.append, left=lambda: 50)
    first, *later = call(served)
    for answer in later:
        torch.testing.assert_close(answer, first, rtol=1e-4, atol=1e-4)
    found = json.loads(next(tmp_path.glob("*/choice.json")).read_text())["choice"]
    assert found["engine"] in ("eager", "fused", "openvino", "onnxruntime")
    assert lines[0].startswith("engine eager so far")
    assert lines[1].startswith(f"engine {found['engine']}: ")


def test_a_race_without_time_decides_nothing(model, tmp_path, lines, monkeypatch):
    monkeypatch.setattr(rule, "RACE_FROM_S", 1e-9)
    monkeypatch.setattr(shape, "race_budget_s", lambda known, left: 1e-3)
    for count in (1, 2):
        call(Served(model, folder=tmp_path, say=lines.append, left=lambda: 50))
        found = json.loads(next(tmp_path.glob("*/choice.json")).read_text())["choice"]
        assert (found["engine"], found["undecided"], found["spent_s"]) == ("", count, 0.0)
    assert lines[1].startswith("engine eager: no time was left for fused")
    assert "raced again after" in lines[1]


def test_a_folder_that_cannot_be_written_costs_nothing_else(model, tmp_path, lines):
    (tmp_path / "file").write_text("in the way")
    served = Served(model, folder=tmp_path / "file", say=lines.append, left=lambda: 3)
    assert torch.equal(call(served)[0], model(X))
    served.close()
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_engine_that_was_asked_for_runs(model, lines):
    served = Served(model, "folded", say=lines.append)
    first, *later = call(served)
    assert torch.equal(first, model(X))
    for answer in later:
        torch.testing.assert_close(answer, first, rtol=1e-4, atol=1e-4)
    assert lines == ["engine folded: as asked, for 1x3x32x32"]


@pytest.mark.slow
def test_an_engine_that_was_asked_for_is_opened_the_next_time(model, tmp_path, lines, monkeypatch):
    first = call(Served(model, "fused", folder=tmp_path, say=lines.append))
    monkeypatch.setattr(forms, "prepared", None)
    again = call(Served(model, "fused", folder=tmp_path, say=lines.append))
    torch.testing.assert_close(again[-1], first[-1], rtol=1e-5, atol=1e-5)
    assert "kept in" not in lines[0]
    assert lines[1] == f"engine fused: as asked, for 1x3x32x32; kept in {tmp_path}"
    assert kept_of(model, tmp_path).read().engine == ""  # `auto` has choices of its own


def test_an_unknown_engine_and_one_that_is_not_installed(model, monkeypatch):
    with pytest.raises(UnknownName, match=r"unknown engine 'fusd' \(did you mean 'fused'"):
        Served(model, "fusd")
    monkeypatch.setattr("leanconv.engine.candidate.installed", lambda name: False)
    with pytest.raises(BadInput, match="--engine openvino: openvino not installed: pip install"):
        Served(model, "openvino")


def test_the_models_attributes_are_there(model):
    assert Served(model).size_multiple == model.size_multiple
    with pytest.raises(AttributeError):
        _ = Served(model).nothing


def test_what_a_killed_process_left_is_removed_once_it_is_old(model, tmp_path):
    kept = kept_of(model, tmp_path)
    ready(kept, model)
    first = kept.folder / kept.read().folder
    old, young, other = (kept.folder / name for name in ("fused-old", "fused-young", "notes"))
    for each in (old, young, other):
        each.mkdir()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    ready(kept, model)
    assert kept.read().folder != first.name
    assert not first.exists()
    assert not old.exists()
    assert young.exists()  # another process may be writing it
    assert other.exists()  # not ours
