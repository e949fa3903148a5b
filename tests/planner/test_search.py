"""search: the best plan within a budget, by counts that are exact and by a clock that is not the machine's."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.convert import Plan, reasons
from leanconv.errors import BadInput, UnknownName
from leanconv.planner import search as run_search
from leanconv.planner.budget import Budget
from leanconv.planner.calibration import Calibration
from leanconv.planner.latency import Figure, Latencies, Whole
from leanconv.planner.trial_swaps import Trials

pytest.importorskip("scipy", reason="needs the search extra")

TO = ["hetconv(part=4)", "group_pointwise(part=4)"]
X = torch.randn(1, 3, 12, 12)


def network(channels=8):
    torch.manual_seed(1)
    c = channels
    model = nn.Sequential(
        nn.Conv2d(3, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(),
        nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * c, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[-1].weight *= 30  # a decided classifier: harms are no rounding errors
        model[3].momentum = None
        model(torch.cat(batches()))  # the BatchNorm's statistics are those of its inputs, as in a trained network
    return model


def batches(count=2):
    torch.manual_seed(2)
    return [torch.randn(10, 3, 12, 12) for _ in range(count)]


def find(model=None, budget="macs<=60%", **options):
    model = network() if model is None else model
    given = {"data": batches(), "candidates": TO, "init": "project", "progress": False, **options}
    return run_search(model, X, budget=budget, **given)


def test_it_is_the_best_sum_of_all():
    found = find()
    table, costs = found.search.harms, found.search.costs["macs"]
    layers = list(table)
    limit = 0.6 * found.search.dense["macs"]
    rest = found.search.dense["macs"] - sum(costs[layer]["conv"] for layer in layers)
    best = math.inf
    for choice in itertools.product(*[["conv", *table[layer]] for layer in layers]):
        pairs = list(zip(layers, choice, strict=True))
        if rest + sum(costs[layer][to] for layer, to in pairs) <= limit:
            best = min(best, sum(table[layer].get(to, 0.0) for layer, to in pairs))
    first = next(trial for trial in found.search.trials if trial.name.startswith("plan 1"))
    assert first.harm_sum == pytest.approx(best)
    assert found.search.chosen.harm == min(trial.harm for trial in found.search.trials if trial.meets)


def test_the_plan_is_for_this_model_and_says_what_it_does():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.after.macs < found.before.macs
    assert {swap.name for swap in found} == {"0", "2", "5", "7"}
    assert found[0].reason == reasons.FIRST
    for swap in found[1:]:
        assert swap.reason.startswith("saves ") if swap.to else reasons.category(swap.reason) == reasons.DENSE_BETTER
    assert "chosen" in str(found)
    assert "because" in str(found)
    assert "macs here: of the whole network; in the plan: of its counted convolutions alone" in str(found)
    assert "harm: 0 is the dense network's, less is better" in str(found)
    lc.apply_(model, found)
    counted = lc.plan(model, X, to="hetconv(part=2)")
    convolutions = sum(swap.before.macs for swap in counted)
    assert convolutions + 16 * 5 == found.search.chosen.measured["macs"]  # and the linear layer


def test_saved_and_read_again(tmp_path):
    found = find()
    again = Plan.load(found.save(tmp_path / "plan.json"))
    assert list(again) == list(found)


def test_the_harm_of_a_layer_is_that_of_its_swap_alone():
    found, model = find(), network().eval()
    layer, to = "5", TO[0]
    lc.apply_(model, lc.plan(model, X, to=to, where=layer), init="project")
    x = torch.cat(batches())
    with torch.no_grad():
        p, q = ((each(x) / 4).log_softmax(1).double() for each in (network().eval(), model))
    assert found.search.harms[layer][to] == pytest.approx(16 * float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)


@pytest.mark.parametrize("init", ["fit", "project"])
def test_fitted_layers_are_judged_by_other_pictures(init, monkeypatch):
    seen, judges, inner = [], [], Calibration.__init__
    monkeypatch.setattr(Trials, "__init__", noted(seen, Trials.__init__, 3))
    monkeypatch.setattr(Calibration, "__init__", noted(judges, inner, 2))
    find(init=init, images=6)
    fitted, judging = torch.cat(seen[0]), torch.cat([batch.inputs for batch in judges[0]])
    whole = torch.cat(batches())
    assert len(fitted) == len(judging) == 6 <= len(whole) // 2
    assert torch.equal(fitted, judging) == (init == "project")
    if init == "fit":
        assert not any(torch.equal(a, b) for a in fitted for b in judging)


def test_too_few_pictures_for_both_are_a_note():
    note = "the images of the fits judge them, too: give 22 for a truer harm"
    assert note in find(init="fit", images=11).search.notes
    assert note not in find(init="project", images=11).search.notes
    assert not any("judge" in each for each in find(init="fit", images=10).search.notes)


def noted(found, inner, place):
    """A method that also notes one of its arguments."""

    def method(*arguments):
        found.append(arguments[place])
        return inner(*arguments)

    return method


def test_same_seed_same_plan():
    options = {"candidates": ["spconv", *TO]}  # spconv is fresh in part
    first, again = (find(state=None, **options) for _ in range(2))
    assert list(first) == list(again)
    assert first.search.harms == again.search.harms


@pytest.mark.parametrize("budget", ["params<=50%", "bytes<=95%", "cycles<=60%", "macs<=70%, params<=60%", "macs<=250k"])
def test_other_quantities(budget):
    found = find(budget=budget, array="4x4")
    for limit in Budget.of(budget).limits:
        assert found.search.chosen.measured[limit.quantity] <= limit.of(found.search.dense[limit.quantity])
    assert found.swapped
    assert found.search.chosen.meets


def test_a_budget_that_the_dense_network_meets_changes_nothing():
    found = find(budget="macs<=100%")
    assert not found.swapped
    assert found.search.chosen.harm == 0.0
    assert "no swap is needed: the dense network is within the budget\nkept: " in str(found)
    assert "alone makes a network faster" not in str(found)


def test_a_budget_that_nothing_meets_says_the_nearest():
    with pytest.raises(BadInput, match=r"macs<=5%: no plan .* nearest swaps 3 layers and has macs \d\d\.\d%") as error:
        find(budget="macs<=5%")
    share = float(str(error.value).split("has macs ")[1].split("%")[0])
    assert find(budget=f"macs<={share + 0.1}%").search.chosen.measured["macs"] > 0


def test_a_search_that_was_killed_goes_on(monkeypatch, tmp_path):
    state, calls = tmp_path / "state.json", []
    harm = Calibration.harm

    def counted(self, model):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return harm(self, model)

    monkeypatch.setattr(Calibration, "harm", counted)
    with pytest.raises(KeyboardInterrupt):
        find(state=state)
    before = len(calls) - 1
    calls.extend([0] * 10)  # no further interrupt
    start = len(calls)
    found = find(state=state)
    resumed = len(calls) - start
    monkeypatch.setattr(Calibration, "harm", harm)
    whole = find(state=tmp_path / "other.json")
    assert found.search.harms == whole.search.harms
    assert list(found) == list(whole)
    calls.clear()
    monkeypatch.setattr(Calibration, "harm", lambda self, model: pytest.fail("measured again"))
    assert list(find(state=state)) == list(whole)
    assert before == 2
    assert resumed > 0


def test_a_file_that_no_search_wrote_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(Calibration, "__init__", lambda *_: pytest.fail("measured"))
    state = tmp_path / "thesis.tex"
    state.write_text("mine")
    with pytest.raises(BadInput, match=r"thesis\.tex.*it stays as it is"):
        find(state=state)
    assert state.read_text() == "mine"


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1e308", "NaN", '"x"'])
def test_a_damaged_state_is_a_line(tmp_path, number):
    state = tmp_path / "state.json"
    first = find(state=state)
    stored = json.loads(state.read_text())
    ((key, values),) = stored["searches"].items()
    values[next(iter(values))] = "HERE"
    state.write_text(json.dumps(stored).replace('"HERE"', number))
    found = find(state=state)
    assert any("started anew" in note for note in found.search.notes)
    assert found.search.harms == first.search.harms
    assert not any("started anew" in note for note in find(state=state).search.notes)
    assert list(json.loads(state.read_text())["searches"]) == [key]


def test_another_search_is_kept_beside(monkeypatch, tmp_path):
    state, other = tmp_path / "state.json", network()
    with torch.no_grad():
        other[0].weight += 0.1
    first, second = find(state=state), find(other, state=state)
    assert first.search.harms != second.search.harms
    monkeypatch.setattr(Calibration, "harm", lambda self, model: pytest.fail("measured again"))
    assert find(state=state).search.harms == first.search.harms
    assert find(other, state=state).search.harms == second.search.harms


def test_train_mode_is_left_and_counts_for_nothing():
    model = network().train()
    found = find(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert list(found) == list(find(network().eval()))


def test_nan_in_weights_is_named():
    model = network()
    with torch.no_grad():
        model[5].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"5\.weight has NaN"):
        find(model)


def test_tied_weights_stay():
    model = network()
    model[7].weight = nn.Parameter(torch.randn(16, 16, 3, 3))
    model.append(nn.Identity())
    model[-1].weight = model[7].weight
    found = find(model, budget="macs<=90%")
    assert next(swap for swap in found if swap.name == "7").reason == reasons.TIED


def test_one_picture_is_noted():
    assert any("1 image only" in note for note in find(data=X).search.notes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": [torch.randn(4, 1, 12, 12)]}, BadInput, "does not run on inputs"),
        ({"data": []}, BadInput, "no calibration image"),
        ({"candidates": []}, BadInput, "candidates is empty"),
        ({"candidates": ["conv"]}, BadInput, "dense is always one"),
        ({"candidates": ["hetcon"]}, UnknownName, "did you mean 'hetconv'"),
        ({"candidates": ["xsepconv"]}, BadInput, "no candidate fits"),
        ({"where": "nothing*"}, BadInput, "matches no convolution"),
        ({"init": "guess"}, BadInput, "'project'"),
        ({"images": 0}, BadInput, "images=0"),
        ({"shortlist": 1.5}, BadInput, "shortlist=1.5"),
        ({"seed": "a"}, BadInput, "seed='a': a whole number, at least 0"),
        ({"loss": "ce"}, BadInput, r"loss='ce': a function \(outputs, batch\)"),
        ({"loss": lambda outputs, batch: outputs}, BadInput, r"loss returned a tensor \(10, 5\): .* one number"),
        ({"loss": lambda outputs, batch: None}, BadInput, "loss returned NoneType"),
        (
            {"loss": lambda outputs, batch: float("nan")},
            BadInput,
            "the model's own loss on the calibration data is nan",
        ),
        ({"budget": "speed<=2"}, BadInput, "latency<=50%"),
        ({"budget": "cycles<=50%", "array": "big"}, BadInput, "ROWSxCOLUMNS"),
    ],
)
def test_bad_input(options, error, words):
    with pytest.raises(error, match=words):
        find(**options)


def test_where_limits_it():
    found = find(budget="macs<=90%", where="5")
    assert [swap.name for swap in found.swapped] == ["5"]
    assert all(swap.reason == reasons.NOT_SELECTED for swap in found if swap.name != "5")


def test_labels_by_a_loss():
    data = [(x, torch.arange(10) % 5) for x in batches()]
    found = find(data=data, loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]))
    assert found.search.how_harm.startswith("loss")
    assert found.search.chosen.meets


def test_another_loss_or_other_labels_are_measured_anew(monkeypatch, cache, tmp_path):
    kept = {"loss": entropy, "data": labelled(), "state": tmp_path / "state.json", "budget": "macs<=80%"}
    first = find(**kept).search.harms
    other = find(**{**kept, "loss": lambda *given: 3 * entropy(*given)}).search.harms
    assert other["5"][TO[0]] == pytest.approx(3 * first["5"][TO[0]], rel=1e-3)
    assert find(**{**kept, "data": labelled(shift=1)}).search.harms != first
    assert not list(cache.rglob("harm-*"))
    monkeypatch.setattr(Calibration, "harm", lambda self, model: pytest.fail("measured again"))
    assert find(**kept).search.harms == first


def labelled(shift=0):
    return [(x, (torch.arange(10) + shift) % 5) for x in batches()]


def entropy(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch[1])


class Clock:
    """A timer whose layers cost what a table says, and whose whole networks take `off` times the sum."""

    layer_ms = {"conv": 10.0, "hetconv(part=4)": 4.0, "group_pointwise(part=4)": 2.0}

    def __init__(self, off=1.0, slow=(), error=0.0):
        self.off, self.slow, self.error = off, slow, error

    def __call__(self, model, inputs, names):
        self.names = names
        return self

    def layers(self, swapped, swaps, progress):
        rows = {name: {to: self._figure(name, to) for to in ("conv", *swapped)} for name in self.names}
        uniform = {to: 5.0 + sum(rows[name][to].ms for name in self.names) for to in swapped}
        return Latencies(5.0 + 10.0 * len(self.names), rows, uniform, how="by a table")

    def _figure(self, name, to):
        return Figure(11.0 if name in self.slow and to != "conv" else self.layer_ms[to], self.error)

    def wholes(self, models, progress):
        dense, found = 5.0 + 10.0 * len(self.names), {}
        for key, model in models.items():
            kinds = {name: getattr(model.get_submodule(name), "name", "conv") for name in self.names}
            names = {"hetconv": "hetconv(part=4)", "group_pointwise": "group_pointwise(part=4)"}
            own = [self._figure(name, names.get(kind, "conv")).ms for name, kind in kinds.items()]
            share = self.off * (5.0 + sum(own)) / dense
            found[key] = Whole(share * dense, share, share, share)
        return found


@pytest.fixture
def clock(monkeypatch):
    from importlib import import_module

    module = import_module("leanconv.planner.search")

    def use(made):
        monkeypatch.setattr(module, "InContext", made)
        monkeypatch.setattr(module, "backend", lambda: type("Backend", (), {"why_not": staticmethod(lambda: "")}))
        return made

    return use


def test_latency_predicted_and_measured(clock):
    clock(Clock())
    found = find(budget="faster=1.5x").search
    assert found.dense["latency"] == 35.0
    assert all(trial.predicted["latency"] == pytest.approx(trial.measured["latency"]) for trial in found.trials)
    assert found.chosen.measured["latency"] <= 35.0 / 1.5
    assert "+0.0%" in str(found)


@pytest.mark.parametrize("off", [0.8, 1.25])
def test_a_prediction_that_lies_is_corrected(clock, off):
    clock(Clock(off))
    found = find(budget="latency<=60%").search
    assert found.chosen.meets
    assert found.chosen.measured["latency"] <= 0.6 * 35.0
    # No measured plan within the budget does less harm, and where predictions were too dark more is kept dense.
    if off < 1:
        strict = find(budget=f"latency<={60 / off}%").search
        assert found.chosen.harm <= max(trial.harm for trial in strict.trials)


def test_a_layer_that_does_not_pay_stays_dense(clock):
    clock(Clock(slow=("5",)))
    found = find(budget="latency<=70%")
    line = next(swap for swap in found if swap.name == "5")
    assert line.to is None
    assert line.reason.startswith(f"{reasons.NO_GAIN}: hetconv(part=4) takes 1.10x of its latency")
    assert found.search.harms["5"] == {}  # its harm costs no time


def test_a_gain_within_the_noise_is_none(clock):
    clock(Clock(error=20.0))
    with pytest.raises(BadInput, match=r"no plan .* nearest swaps 0 layers and has latency 100\.0%"):
        find(budget="latency<=70%")


def test_an_unbearable_swap_stays_dense(clock, monkeypatch):
    clock(Clock())
    from leanconv.planner.trial_swaps import Trials

    plain = Trials.harm
    bad = lambda self, lines, harm: math.inf if lines[0].name == "2" else plain(self, lines, harm)  # noqa: E731
    monkeypatch.setattr(Trials, "harm", bad)
    found = find(budget="latency<=70%")
    line = next(swap for swap in found if swap.name == "2")
    assert line.to is None
    assert line.reason.startswith(reasons.TOO_HARMFUL)


def test_a_network_that_cannot_be_timed_is_no_candidate(clock, monkeypatch):
    made = clock(Clock())
    layers = Clock.layers

    def refusing(self, swapped, swaps, progress):
        found = layers(self, {to: model for to, model in swapped.items() if to != TO[0]}, swaps, progress)
        found.refused[TO[0]] = "no kernel"
        return found

    monkeypatch.setattr(Clock, "layers", refusing)
    found = find(budget="latency<=60%")
    assert {swap.to for swap in found.swapped} == {TO[1]}
    assert any("no kernel" in note for note in found.search.notes)
    assert made.names == ["2", "5", "7"]


def test_nothing_measured_meets_it(clock):
    clock(Clock(off=3.0))
    with pytest.raises(BadInput, match=r"when it is measured as a whole; the nearest swaps"):
        find(budget="latency<=20%")


def test_the_engine_that_fails_gives_way_to_pytorch(monkeypatch):
    from importlib import import_module

    def failing(*_):
        raise RuntimeError("cannot be captured")

    reasons_given = []

    def alone(model, inputs, names, why):
        reasons_given.append(why)
        return Clock()(model, inputs, names)

    module = import_module("leanconv.planner.search")
    monkeypatch.setattr(module, "InContext", failing)
    monkeypatch.setattr(module, "Alone", alone)
    assert find(budget="latency<=60%").search.chosen.meets
    backend = type("Backend", (), {"why_not": staticmethod(lambda: "halide is not installed")})
    monkeypatch.setattr(module, "backend", lambda: backend)
    find(budget="latency<=60%")
    assert "cannot be captured" in reasons_given[0]
    assert reasons_given[1] == "halide is not installed"


def test_the_fit_is_the_default_and_does_less_harm():
    fitted, projected = find(init=None, budget="macs<=50%"), find(budget="macs<=50%")
    assert fitted.search.init == "fit"
    for layer, harms in fitted.search.harms.items():
        assert all(harm < projected.search.harms[layer][to] for to, harm in harms.items())
    assert fitted.search.chosen.harm < projected.search.chosen.harm


def test_trials_leave_the_network_as_a_whole_to_apply(monkeypatch):
    from leanconv.convert.fit import whole

    calls, refined = [], whole._refined
    monkeypatch.setattr(whole, "_refined", lambda *given: calls.append(given[3]) or refined(*given))
    found = find(init="fit", budget="macs<=90%", candidates=TO[:1], where="5")
    assert found.swapped
    assert "not refined as a whole" in str(found)
    assert calls == []
    lc.apply_(network().eval(), found, init="fit", data=batches(), progress=False, whole_steps=1)
    assert calls == [1]
    for wrong in (-1, True, 0.5):
        with pytest.raises(BadInput, match="whole_steps="):
            lc.apply_(network(), found, init="fit", data=batches(), whole_steps=wrong)


def test_a_loss_that_is_nan_after_a_swap_is_unbearable():
    """Layer 2 as HetConv alone gives NaN; the dense network does not."""
    dense = [model_outputs.detach() for model_outputs in map(network().eval(), batches())]

    def loss(outputs, batch):
        same = any(outputs.shape == own.shape and torch.equal(outputs, own) for own in dense)
        return 0.0 if same else float("nan")

    with pytest.raises(BadInput, match="no plan of these candidates meets it"):
        find(loss=loss, data=batches())


def test_where_no_swap_can_be_tried_the_reason_is_the_error(monkeypatch):
    from leanconv.planner.trial_swaps import Trials

    plain = Trials.swapped

    def failing(self, swaps, *, init=None):
        if init is None:
            raise BadInput("its inputs are all alike")
        return plain(self, swaps, init=init)

    monkeypatch.setattr(Trials, "swapped", failing)
    with pytest.raises(BadInput, match=r"none of the \d+ swaps could be tried; the first: 2 as .*: its inputs are all"):
        find()


def test_under_inference_mode():
    with torch.inference_mode():
        found = find(init="fit", candidates=TO[:1], budget="macs<=90%")
    assert found.swapped


def test_a_swap_that_fails_is_noted_and_tried_again(monkeypatch, tmp_path):
    from leanconv.planner.trial_swaps import Trials

    plain = Trials.swapped

    def failing(self, swaps, *, init=None):
        if init is None and [swap.name for swap in swaps] == ["2"]:
            raise BadInput("its inputs are all alike")
        return plain(self, swaps, init=init)

    state = tmp_path / "state.json"
    monkeypatch.setattr(Trials, "swapped", failing)
    found = find(budget="macs<=70%", state=state)
    assert any("2 trials did not run, the first: 2 as hetconv(part=4): its inputs" in n for n in found.search.notes)
    assert next(swap for swap in found if swap.name == "2").to is None
    monkeypatch.setattr(Trials, "swapped", plain)
    assert all(harm < math.inf for harm in find(budget="macs<=70%", state=state).search.harms["2"].values())
