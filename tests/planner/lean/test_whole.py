"""The whole way: which stage runs when, what is kept, what is handed over and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import leanconv as lc
from leanconv.convert import Plan
from leanconv.errors import BadCheckpoint, BadInput, Interrupted
from leanconv.planner.lean.stages import Stages
from leanconv.planner.lean.state import STAGES, State
from leanconv.planner.lean.whole import make_lean
from leanconv.runs import load
from tests.planner.lean.quick_way import Quick

ALL = ["score dense", "plan", "fit", "score fit", "race all", "recover", "race again"]


def go(way, asked=None, **settings):
    return make_lean(asked or way.asked, stages=way.stages(**settings), progress=False)


def lean_layers(model):
    return sum(type(module).__name__ == "DepthwiseSeparableConv2d" for module in model.modules())


def test_it_hands_over_a_run_folder(way):
    report = go(way)
    assert not report.refusal
    assert way.calls == ALL
    assert lean_layers(load(way.asked.out)) == len(Plan.load(Path(way.asked.out) / "plan.json").swapped) > 0
    assert (report.best, report.loss) == ("recover", pytest.approx(0.01))
    shown = str(report)
    for words in ("0.9000", "0.5000", "0.8900", "lost 0.0100", "2.00x faster (1.90 to 2.10)", "fewer"):
        assert words in shown
    stored = json.loads((Path(way.asked.out) / "lean.json").read_text())
    assert stored["report"] == json.loads(json.dumps(report.to_dict()))
    assert list(stored["stages"]) == [name for name in STAGES if name != "export"]


@pytest.mark.parametrize("found", [{}, {"output_error": 0.125}])
def test_the_recovery_knows_how_near_the_fit_came(found, way, monkeypatch):
    seen, inner = [], Quick.recover

    def recover(self, fitted, out, again, error=None):
        seen.append(error)
        return inner(self, fitted, out, again, error)

    monkeypatch.setattr(Quick, "recover", recover)
    go(way, fit=lambda network, steps, subject: lc.apply_(network, steps).to_dict() | found)
    assert seen == [found.get("output_error")]


def test_the_dense_network_stays_as_it_was(way, dense):
    before = {path.name: path.read_bytes() for path in dense.path.iterdir()}
    go(way)
    assert {path.name: path.read_bytes() for path in dense.path.iterdir()} == before


def test_a_finished_way_does_nothing_again(way):
    first = go(way)
    way.calls.clear()
    assert go(way).to_dict() == first.to_dict()
    assert way.calls == []


@pytest.mark.parametrize("killed", ["plan", "fit", "race"])
def test_a_killed_way_goes_on_with_the_stage_where_it_was(way, killed):
    stages = way.stages()

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"leanconv lean {way.asked.out} --resume"):
        make_lean(way.asked, stages=replace(stages, **{killed: stop}), progress=False)
    done = list(way.calls)
    assert not (Path(way.asked.out) / "model.json").exists()
    way.calls.clear()
    go(way)
    assert done + way.calls == ALL


def test_a_crash_inside_a_stage_leaves_the_others(way):
    def crash(*_, **__):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        make_lean(way.asked, stages=replace(way.stages(), fit=crash), progress=False)
    assert list(State.read(way.asked.out).stages) == ["dense", "plan"]


def test_a_slower_network_is_not_trained_and_not_handed_over(way):
    report = go(way, ratio=0.9)
    assert "not faster: 0.90x" in report.refusal
    assert "recover" not in way.calls
    assert not (Path(way.asked.out) / "model.json").exists()
    assert "0.90x the speed" in str(report)


def test_a_gain_within_the_noise_is_not_handed_over_and_measured_again(way):
    report = go(way, ratio=1.02, noise=0.2)
    assert report.refusal.startswith("not decided: the lean network has 1.02x (0.82 to 1.22) the dense one's speed")
    assert "quiet machine" in report.refusal
    assert "faster" not in str(report)
    assert not (Path(way.asked.out) / "model.json").exists()
    assert way.calls == ALL[:5]
    way.calls.clear()
    assert not go(way, ratio=1.3, noise=0.2).refusal
    assert way.calls == ALL[4:]


def test_a_gain_that_the_recovered_weights_leave_in_doubt(way):
    stages = way.stages()

    def race(dense, lean, inputs, *, budget_s, engines, progress):
        noise = 0.9 if engines else 0.05
        return way.stages(noise=noise).race(dense, lean, inputs, budget_s=budget_s, engines=engines, progress=progress)

    assert make_lean(way.asked, stages=replace(stages, race=race), progress=False).refusal.startswith("not decided")
    way.calls.clear()
    assert not go(way).refusal
    assert way.calls == ["race again"]


def test_whether_a_limit_was_set_is_said(way):
    assert "no limit was set" in str(go(way))
    assert "no limit was set" not in str(go(way, replace(way.asked, max_loss=0.5)))


def test_too_large_a_loss_is_refused_with_the_figures(way):
    asked = replace(way.asked, max_loss=0.005)
    report = go(way, asked)
    assert "fell by 0.0100, from 0.9000 to 0.8900" in report.refusal
    assert not (Path(asked.out) / "model.json").exists()
    assert json.loads((Path(asked.out) / "lean.json").read_text())["report"]["accepted"] is False
    way.calls.clear()
    assert not go(way, replace(asked, max_loss=0.02)).refusal
    assert way.calls == ["race again"]  # nothing is trained again
    assert lean_layers(load(asked.out))
    assert go(way, asked).refusal
    assert not (Path(asked.out) / "model.json").exists()


def test_a_loss_is_judged_after_the_recovery_only(way):
    assert not go(way, replace(way.asked, max_loss=0.05), scores=(0.9, 0.1, 0.88)).refusal


def test_a_recovery_that_harms_is_not_kept(way):
    report = go(way, scores=(0.9, 0.89, 0.4))
    assert report.best == "fit"
    assert "the recovery scored lower" in str(report)


def test_without_epochs_the_fitted_network_is_handed_over(way):
    report = go(way, replace(way.asked, epochs=0))
    assert way.calls == ["score dense", "plan", "fit", "score fit", "race all"]
    assert (report.best, report.refusal) == ("fit", "")


def test_less_speed_than_asked_for_is_said(way):
    assert "asked for: 4x; measured: 2.00x (1.90 to 2.10), which is less" in str(
        go(way, replace(way.asked, faster=4.0))
    )


def test_less_speed_is_said_even_where_the_interval_reaches_what_was_asked_for(way):
    shown = str(go(way, replace(way.asked, faster=2.05)))
    assert "asked for: 2.05x; measured: 2.00x (1.90 to 2.10), which is less" in shown


def test_how_many_images_the_score_rests_on_is_said(way):
    assert "top-1: of 5 test images" in str(go(way))


def test_a_plan_that_changes_nothing_keeps_the_dense_network(way):
    def nothing(subject, asked, place):
        return Plan([]), {"how": "a search"}

    report = make_lean(way.asked, stages=replace(way.stages(), plan=nothing), progress=False)
    assert "no layer changes" in report.refusal
    assert str(report)


@pytest.mark.parametrize("gone", ["model.json", "model.safetensors", ""])
def test_a_finished_stage_whose_files_are_gone(way, gone):
    go(way)
    stages = Path(way.asked.out) / "stages"
    if gone:
        (stages / "recover" / gone).unlink()
    else:
        shutil.rmtree(stages)
    with pytest.raises(BadCheckpoint, match=f"stages/recover has no .*{gone}.* says that the stage is done"):
        go(way)


def test_other_arguments_are_refused(way):
    go(way)
    with pytest.raises(BadInput, match=r"was started with to=depthwise_separable.* choose another --out"):
        go(way, replace(way.asked, to="hetconv(part=4)"))
    with pytest.raises(BadInput, match="epochs=1"):
        go(way, replace(way.asked, epochs=2))


def test_other_weights_of_the_dense_network_are_refused(way, dense):
    go(way)
    network = dense.load_model()
    next(network.parameters()).data += 1
    dense.save_model(network)
    with pytest.raises(BadInput, match="other weights than when"):
        go(way)


def test_nan_in_the_weights(way, broken):
    with pytest.raises(BadInput, match=r"'.*weight' has NaN or infinite values"):
        go(way)
    assert not Path(way.asked.out).exists()


def test_nan_after_the_fit(way):
    def fit(network, steps, subject):
        next(network.parameters()).data.fill_(float("nan"))
        return {"layers": []}

    with pytest.raises(BadInput, match="the fitted network: "):
        make_lean(way.asked, stages=replace(way.stages(), fit=fit), progress=False)


def test_a_folder_of_somebody_else(way):
    out = Path(way.asked.out)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds thesis.txt and no lean.json"):
        go(way)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def inside(stored, stage, **values):
    """lean.json with other values in a stage."""
    return stored | {"stages": stored["stages"] | {stage: stored["stages"][stage] | values}}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda stored: stored | {"format": 9}, "has format 9"),
        (lambda stored: stored | {"stages": {"plan": 3}}, "has the stages plan, which cannot be"),
        (lambda stored: stored | {"stages": {"dense": 3}}, "dense is missing or no value of it"),
        (lambda stored: stored | {"stages": {"dense": {"seconds": 1}}}, "dense.score is missing"),
        (lambda stored: inside(stored, "dense", score="a"), "dense.score is missing or no value"),
        (lambda stored: inside(stored, "fit", score=float("nan")), "fit.score is missing or no value"),
        (lambda stored: inside(stored, "recover", seconds=float("inf")), "recover.seconds is missing or no value"),
        (lambda stored: inside(stored, "plan", operators={"sic": "x"}), "plan.operators is missing or no value"),
        (lambda stored: inside(stored, "speed", ratio={"low": 1, "middle": 2}), "speed.ratio.high is missing"),
        (lambda stored: inside(stored, "look", lean=[]), "look.lean is missing or no value"),
        (lambda stored: inside(stored, "fit", params=True), "fit.params is missing or no value"),
        (lambda stored: stored | {"asked": stored["asked"] | {"epochs": 0}}, "which cannot be"),
        (lambda stored: stored | {"stages": {"magic": {"seconds": 1}}}, "its stages are none of"),
        (lambda stored: stored | {"asked": stored["asked"] | {"epochs": "1"}}, "epochs=1 is no value of it"),
        (lambda stored: stored | {"asked": {}}, "its arguments are not those"),
        (lambda stored: [], "has format list"),
    ],
)
def test_a_damaged_state(way, change, what):
    go(way)
    path = Path(way.asked.out) / "lean.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BadCheckpoint, match=what):
        go(way)


def test_a_moved_folder_goes_on(way, tmp_path):
    go(way)
    shutil.move(way.asked.out, tmp_path / "moved")
    moved = replace(State.read(tmp_path / "moved").asked, out=str(tmp_path / "moved"))
    way.calls.clear()
    assert not go(way, moved).refusal
    assert way.calls == []


def test_two_at_once(way):
    stages = way.stages()

    def second(*_, **__):
        make_lean(way.asked, stages=stages, progress=False)

    with pytest.raises(BadInput, match="in use by process"):
        make_lean(way.asked, stages=replace(stages, plan=second), progress=False)


def test_the_stages_are_real_by_default():
    assert {stage.__module__.rpartition(".")[2] for stage in vars(Stages()).values()} == {"stages", "speed"}
