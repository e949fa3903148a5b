"""search: which operator in which layer, under a budget of measured latency, MACs, parameters, bytes or cycles.

    minimise Σ_l harm(l, c_l)   subject to   Σ_l cost(l, c_l) ≤ budget,   c_l one of the candidates or dense

cost: measured inside the network (`in_context`), or counted. harm: of the network's outputs with that one layer
swapped and fitted. Sums are a prediction only, as LANA's are (Molchanov et al. 2021, arXiv:2107.10624): so a shortlist
of plans is measured as a whole, latency and harm, and the best that meets the budget is returned.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.convert import Swap
from leanconv.copies import copied
from leanconv.errors import BadInput, UnsupportedConv
from leanconv.extras import needs
from leanconv.kernels import backend
from leanconv.measure import Array, describe
from leanconv.planner.alone import Alone
from leanconv.planner.budget import Budget
from leanconv.planner.calibration import Calibration, Loss, divided, read_batches
from leanconv.planner.checks import FIT, check_loss, check_numbers, check_state, check_weights, init_of, state_of
from leanconv.planner.costs import Costs, array_costs, counted_costs, latency_costs
from leanconv.planner.found import FoundPlan, Report, Trial
from leanconv.planner.in_context import InContext
from leanconv.planner.kept import Kept
from leanconv.planner.latency import Latencies, Timer, Whole
from leanconv.planner.lines import lines_of
from leanconv.planner.shortlist import Choices, Problem, settle
from leanconv.planner.trial_swaps import Layer, Trials, candidate_names, layers_of
from leanconv.progress import Progress
from leanconv.running import Inputs, to_eval_

IMAGES = 128  # calibration images that are used, by default


@torch.inference_mode(False)  # trials are fitted, which that mode forbids
def search(
    model: nn.Module,
    inputs: Inputs,
    *,
    data: Any,
    budget: "str | Mapping[str, Any]",
    candidates: Sequence[str] | None = None,
    where: Any = None,
    init: str | None = None,
    loss: Loss | None = None,
    images: int = IMAGES,
    shortlist: int = 3,
    array: str = "64x64",
    state: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FoundPlan:
    """Find the operators that meet a budget at the least harm. The model stays as it is; `apply_` takes the plan.

    Each candidate goes into all its layers once, to time every layer inside the network; and into each layer alone, to
    see what it does to the network's outputs on `data`. What was measured is kept: a search that was killed goes on.
    A layer stays dense where no candidate saves anything, and where its harm is not worth it; the plan says which.

    How long: one trial for each layer and candidate that saves something, and one for each whole plan. With
    init="fit" a trial of a ResNet-20 takes some 4 s of one core (128 images of 32×32), of larger ones more; the trials
    of a network of 18 layers and 8 candidates take minutes. With "project", about the time of running the images.
    A trial fits layers and blocks, never the network as a whole: `apply_(init="fit")` does that for the plan.

    Args:
        inputs: an example call, as `plan` takes it. Latency is measured on it, on the model's device.
        data: batches of calibration images as the model takes them (a list, a DataLoader, one tensor). Labels that
            stand beside them are used by `loss` alone.
        budget: "latency<=50%" (of the dense network), "latency<=12ms", "faster=2x", "macs<=40M", "params<=80%",
            "bytes<=1G", "cycles<=50%", several joined by commas; or a mapping {"latency": 0.5}.
        candidates: operator strings; default `planner.trial_swaps.CANDIDATES`. Dense is always a choice.
        where: as in `plan`, the layers that may change.
        init: how `apply_` makes the weights whose harm is measured: "fit" where it is there, else "project".
        loss: (outputs, batch) -> the mean loss of a batch; harm is then what it rises by. Default: the divergence of
            the outputs from the original's (`planner.divergence`), which needs no labels.
        images: the most calibration images that a trial is fitted on. As many others judge it, where `data` has them
            and there is no `loss`; else the same.
        shortlist: plans measured as a whole.
        array: the systolic array of `cycles`.
        state: the JSON file of what was measured, for any number of searches. Default: one in the cache folder; with
            `loss` none, so nothing is kept. In a file a loss is known by the labels and the dense network's loss.
    Returns: a `Plan` with `.search`: predicted and measured figures, the front, the shortlist.
    Raises: BadInput for a budget that nothing meets (it says the nearest), NaN in weights or data, data that the model
        does not take, a `state` that no search wrote; MissingExtra without scipy.
    """
    asked, names = Budget.of(budget), candidate_names(candidates)
    check_numbers(images, shortlist, seed)
    check_loss(loss)
    check_state(state)
    grid = Array.parse(array)
    with needs("scipy", "search"):
        import scipy.optimize  # noqa: F401  # before minutes of measuring
    check_weights(model)
    init = init_of(init)
    original = copied(model)
    to_eval_(original)
    others = init == FIT and loss is None  # what a loss makes of half a batch, nobody knows
    given = read_batches(data, inputs, (1 + others) * images)
    fitted, judges = divided(given, images) if others else (given, given)
    calibration, seen = Calibration(original, judges, loss), [batch.inputs for batch in fitted]
    with Progress("search", visible=progress, counted=True, left=True) as bar:
        run = _Search(original, inputs, calibration, asked, layers_of(original, inputs, names, where), bar)
        run.trials = Trials(original, init, seen, seed)
        if others and fitted is judges:
            run.notes.append(f"the images of the fits judge them, too: give {2 * images} for a truer harm")
        run.kept = state_of(original, calibration, seen if init == FIT else [], init, seed, state)
        return run.found(names, grid, shortlist)


class _Search:
    """One search: the parts that `search` puts together."""

    trials: Trials
    kept: Kept

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        calibration: Calibration,
        budget: Budget,
        layers: Sequence[Layer],
        bar: Progress,
    ) -> None:
        self.model, self.inputs, self.calibration, self.budget, self.bar = model, inputs, calibration, budget, bar
        self.layers = layers
        self.timer: Timer | None = None
        self.refused: dict[str, str] = {}
        self.notes = list(calibration.notes)
        self._plans = 0  # measured so far

    def found(self, names: Sequence[str], grid: Array, shortlist: int) -> FoundPlan:
        costs, latencies = self._costs(names, grid)
        useful = self._useful(costs, latencies)
        problem = Problem(self.budget, costs, self._harms(useful))
        self._check_tried(problem)
        if not any(problem.harms.values()):
            none: Choices = {}
            if not problem.meets(problem.predicted(none)):
                raise problem.none_meets(none, problem.predicted(none), "")
        uniform = self._uniform(problem, names, latencies)
        trials = settle(problem, lambda plans: self._measured(problem, plans), uniform, shortlist)
        report = self._report(problem, trials, latencies)
        return FoundPlan(lines_of(problem, self.layers, report.chosen.choices), report)

    def _costs(self, names: Sequence[str], grid: Array) -> tuple[dict[str, Costs], Latencies | None]:
        """The tables of all limited quantities; candidates that cannot be built or timed are left out of all."""
        swapped: dict[str, nn.Module] = {}
        for to in names:
            lines = [layer.swaps[to] for layer in self.layers if to in layer.swaps]
            if not lines:
                continue
            try:
                swapped[to] = self.trials.swapped(lines, init="project")
            except (BadInput, UnsupportedConv) as error:
                self.refused[to] = str(error)
        latencies: Latencies | None = None
        if "latency" in self.budget.quantities:
            latencies = self._latencies(swapped)
            self.refused |= latencies.refused
            self.notes += latencies.notes
        self.notes += [f"{to} is no candidate: its network cannot be timed: {why}" for to, why in self.refused.items()]
        self.layers = [
            Layer(each.name, each.kept, {to: line for to, line in each.swaps.items() if to not in self.refused})
            for each in self.layers
        ]
        costs: dict[str, Costs] = {}
        for quantity in self.budget.quantities:
            if quantity == "latency" and latencies is not None:
                costs[quantity] = latency_costs(latencies)
            elif quantity == "cycles":
                left = {to: made for to, made in swapped.items() if to not in self.refused}
                costs[quantity] = array_costs(self.model, left, self.layers, self.inputs, grid)
            else:
                costs[quantity] = counted_costs(quantity, self.model, self.inputs, self.layers)
        return costs, latencies

    def _latencies(self, swapped: Mapping[str, nn.Module]) -> Latencies:
        """Measured inside the network where the fused engine runs it, else alone."""
        names = [layer.name for layer in self.layers if layer.swaps]
        swaps = {to: {layer.name for layer in self.layers if to in layer.swaps} for to in swapped}
        why = backend().why_not()
        if not why:
            try:
                self.timer = InContext(self.model, self.inputs, names)
                return self.timer.layers(swapped, swaps, self.bar)
            except Exception as error:  # an engine may fail in any way; PyTorch alone runs what it ran before
                why = f"the fused engine does not run it: {type(error).__name__}: {error}".splitlines()[0]
        self.timer = Alone(self.model, self.inputs, names, why)
        return self.timer.layers(swapped, swaps, self.bar)

    def _useful(self, costs: Mapping[str, Costs], latencies: Latencies | None) -> dict[str, list[Swap]]:
        """The lines of each layer that save something in a limited quantity, by more than its standard error."""

        def saves(layer: str, to: str, quantity: str) -> bool:
            least = latencies.error_ms(layer, to) if quantity == "latency" and latencies is not None else 0.0
            return costs[quantity].saved(layer, to) > least

        return {
            layer.name: [line for to, line in layer.swaps.items() if any(saves(layer.name, to, each) for each in costs)]
            for layer in self.layers
            if layer.swaps
        }

    def _harms(self, useful: Mapping[str, Sequence[Swap]]) -> dict[str, dict[str, float]]:
        """The harm of each line alone, measured or as kept."""
        self.bar.begin("harm", sum(map(len, useful.values())))
        found: dict[str, dict[str, float]] = {name: {} for name in useful}
        for name, lines in useful.items():
            for line in lines:
                found[name][str(line.to)] = self._harm([line])
                self.bar.advance(f"harm of {name}")
        return found

    def _check_tried(self, problem: Problem) -> None:
        """Raise BadInput where not one swap could be tried: the budget is not what is wrong."""
        harms = [harm for row in problem.harms.values() for harm in row.values()]
        if harms and self.trials.failures and not any(map(math.isfinite, harms)):
            raise BadInput(f"none of the {len(harms)} swaps could be tried; the first: {self.trials.failures[0]}")

    def _harm(self, lines: Sequence[Swap]) -> float:
        """The harm of some lines together; the same lines are measured once."""
        key = "; ".join(f"{line.name}: {line.to}" for line in lines)
        if (known := self.kept.get(key)) is not None:
            return known
        harm = self.trials.harm(lines, self.calibration.harm)
        return self.kept.put(key, harm) if math.isfinite(harm) else harm  # what failed is tried again next time

    def _uniform(self, problem: Problem, names: Sequence[str], latencies: Latencies | None) -> list[Trial]:
        """Each candidate in every layer that takes it, as measured before; its harm where it meets the budget."""
        made = []
        for to in names:
            choices = {layer.name: to for layer in self.layers if to in layer.swaps}
            if not choices:
                continue
            predicted = problem.predicted(choices)
            measured = dict(predicted)
            if latencies is not None:
                measured["latency"] = latencies.uniform[to]
            meets = problem.meets(measured)
            harm = self._harm(self._chosen(choices)) if meets else math.inf
            trial = Trial(f"{to} everywhere", choices, predicted, measured, problem.harm(choices), harm)
            if latencies is not None:
                trial.share = latencies.uniform[to] / latencies.dense_ms
            made.append(trial)
        return made

    def _chosen(self, choices: Choices) -> list[Swap]:
        return [layer.swaps[choices[layer.name]] for layer in self.layers if layer.name in choices]

    def _measured(self, problem: Problem, plans: Sequence[Choices]) -> list[Trial]:
        """Whole plans: harm and latency."""
        self.bar.begin("harm of whole plans", len(plans))
        made, models = [], dict[str, nn.Module]()
        for choices in plans:
            lines = self._chosen(choices)
            self._plans += 1
            name = f"plan {self._plans}"
            predicted = problem.predicted(choices)
            made.append(Trial(name, choices, predicted, {}, problem.harm(choices), self._harm(lines)))
            models[name] = self.trials.swapped(lines, init="project")
            self.bar.advance(name)
        timed = self.timer.wholes(models, self.bar) if self.timer is not None else {}
        for trial in made:
            trial.measured = {each: value for each, value in trial.predicted.items() if each != "latency"}
            whole = timed.get(trial.name)
            if isinstance(whole, Whole):
                # In ms of the dense network's figure, against which the budget is.
                trial.measured["latency"] = whole.share * problem.costs["latency"].dense
                trial.share, trial.low, trial.high = whole.share, whole.low, whole.high
            elif self.timer is not None:
                self.notes.append(f"{trial.name} cannot be timed: {whole}")
                trial.measured = {}
        return made

    def _report(self, problem: Problem, trials: Sequence[Trial], latencies: Latencies | None) -> Report:
        notes = [*self.notes, *([self.kept.note] if self.kept.note else [])]
        failures = self.trials.failures
        notes += [f"{len(failures)} trials did not run, the first: {failures[0]}"] if failures else []
        dense = {quantity: costs.dense for quantity, costs in problem.costs.items()}
        device = next((t.device for t in self.model.parameters()), torch.device("cpu"))
        return Report(
            str(self.budget),
            dense,
            self.calibration.how,
            self.trials.init,
            self.calibration.images,
            latencies.how if latencies else "",
            list(trials),
            problem.front(),
            notes,
            {name: dict(row) for name, row in problem.harms.items()},
            {
                quantity: {name: dict(row) for name, row in costs.rows.items()}
                for quantity, costs in problem.costs.items()
            },
            describe(device),
        )
