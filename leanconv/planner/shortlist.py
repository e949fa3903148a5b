"""From layers' costs and harms to whole plans: the integer program, plans near its optimum, and their measurement."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from leanconv.errors import BadInput
from leanconv.planner.budget import Budget, amount
from leanconv.planner.costs import Costs
from leanconv.planner.found import Point, Trial
from leanconv.planner.integer_program import least_harm, nearest_choice
from leanconv.planner.trial_swaps import DENSE

Choices = dict[str, str]  # layer -> operator, without the layers that stay dense
ROUNDS = 3  # of predicting again, with the budget corrected by what was measured
CLOSE = 0.02  # a measured latency this near to its prediction needs no correction
TIGHTER = 0.94  # a plan of a tighter budget, in case that the prediction was too kind
_POINTS = 12  # of the front


@dataclass(frozen=True)
class Problem:
    """The layers' choices. `harms[layer][to]`: of the useful candidates alone; the dense choice has harm 0."""

    budget: Budget
    costs: Mapping[str, Costs]
    harms: Mapping[str, Mapping[str, float]]

    @property
    def options(self) -> dict[str, list[str]]:
        """The choices of each layer that has a useful one, dense first."""
        return {layer: [DENSE, *row] for layer, row in self.harms.items() if row}

    def solve(self, budget: Budget, forbidden: Sequence[Choices] = ()) -> Choices | None:
        """The choices of least harm within a budget, other than the forbidden ones; None where there are none."""
        options = self.options
        harms = [[self._harm(layer, to) for to in row] for layer, row in options.items()]
        costs, limits = self._program(budget)
        old = [[row.index(plan.get(layer, DENSE)) for layer, row in options.items()] for plan in forbidden]
        found = least_harm(harms, costs, limits, old)
        return None if found is None else self._named(found)

    def nearest(self) -> Choices:
        """The choices that come nearest to the budget."""
        costs, limits = self._program(self.budget, rest=True)
        allowed = [[math.isfinite(self._harm(layer, to)) for to in row] for layer, row in self.options.items()]
        return self._named(nearest_choice(costs, limits, allowed))

    def _program(self, budget: Budget, *, rest: bool = False) -> tuple[list[list[list[float]]], list[float]]:
        """The rows of each quantity, and its limit less what no choice changes (`rest`: that is in the rows)."""
        rows, limits = [], []
        options = self.options
        for limit in budget.limits:
            costs = self.costs[limit.quantity]
            fixed = costs.dense - sum(costs.rows[layer][DENSE] for layer in options)
            more = fixed / max(1, len(options)) if rest else 0.0
            rows.append([[costs.rows[layer][to] + more for to in row] for layer, row in options.items()])
            limits.append(limit.of(costs.dense) - (0.0 if rest else fixed))
        return rows, limits

    def _named(self, chosen: Sequence[int]) -> Choices:
        named = {layer: row[choice] for (layer, row), choice in zip(self.options.items(), chosen, strict=True)}
        return {layer: to for layer, to in named.items() if to != DENSE}

    def _harm(self, layer: str, to: str) -> float:
        return 0.0 if to == DENSE else self.harms[layer][to]

    def harm(self, choices: Choices) -> float:
        """The layers' harms added up; infinite for a candidate whose harm was not measured."""
        return sum(self.harms.get(layer, {}).get(to, math.inf) for layer, to in choices.items())

    def predicted(self, choices: Choices) -> dict[str, float]:
        return {quantity: costs.of(choices) for quantity, costs in self.costs.items()}

    def meets(self, values: Mapping[str, float]) -> bool:
        """Whether values of the limited quantities are within the budget."""
        return all(values[limit.quantity] <= limit.of(self._dense(limit.quantity)) for limit in self.budget.limits)

    def _dense(self, quantity: str) -> float:
        return self.costs[quantity].dense

    def excess(self, values: Mapping[str, float]) -> float:
        """The largest value as a share of its limit; above 1 the budget is not met."""
        return max(values[each.quantity] / each.of(self._dense(each.quantity)) for each in self.budget.limits)

    def front(self) -> list[Point]:
        """The least predicted harm for budgets from the least cost to the dense network's, of the first quantity."""
        costs = self.costs[self.budget.limits[0].quantity]
        least = sum(min(costs.rows[layer][to] for to in row) for layer, row in self.options.items())
        fixed = costs.dense - sum(costs.rows[layer][DENSE] for layer in self.options)
        low = max(1e-6, (fixed + least) / costs.dense)
        found: list[Point] = []
        for step in range(_POINTS):
            share = low + (1 - low) * step / (_POINTS - 1)
            budget = Budget.of({costs.quantity: f"{min(100.0, 100 * share + 1e-6):.9f}%"})
            choices = self.solve(budget)
            if choices is None:
                continue
            point = Point(costs.of(choices) / costs.dense, self.harm(choices), len(choices))
            if not found or point.share > found[-1].share:
                found.append(point)
        return found

    def none_meets(self, choices: Choices, values: Mapping[str, float], how: str) -> BadInput:
        """The error for a budget that nothing meets; says the nearest plan."""
        parts = []
        for limit in self.budget.limits:
            value, dense = values[limit.quantity], self._dense(limit.quantity)
            parts.append(
                f"{limit.quantity} {100 * value / dense:.1f}% of the dense network's "
                f"({amount(limit.quantity, value)} of {amount(limit.quantity, dense)})"
            )
        return BadInput(
            f"budget {self.budget}: no plan of these candidates meets it{how}; the nearest swaps {len(choices)} layers "
            f"and has {', '.join(parts)}: ask for that, or give other candidates"
        )


def proposals(problem: Problem, count: int, factor: float, seen: Sequence[Choices]) -> list[Choices]:
    """Up to `count` plans that were not `seen`: the optimum, then one of a tighter budget, then the next best ones."""
    found: list[Choices] = []

    def propose(budget: Budget) -> None:
        if len(found) < count and (made := problem.solve(budget, [*seen, *found])) is not None:
            found.append(made)

    timed = "latency" in problem.budget.quantities
    budget = problem.budget.scaled({"latency": factor})
    propose(budget)
    if timed:
        propose(problem.budget.scaled({"latency": factor * TIGHTER}))
    for _ in range(count):
        propose(budget)
    return found


def settle(
    problem: Problem, measure: Callable[[list[Choices]], list[Trial]], others: Sequence[Trial], count: int
) -> list[Trial]:
    """Measure a shortlist; propose again with a corrected budget while predictions are off. The best one is `chosen`.

    Args:
        measure: whole plans -> their trials. others: trials that were measured before (the uniform plans).
    Raises: BadInput where nothing meets the budget.
    """
    trials: list[Trial] = []
    factor, wanted = 1.0, count
    for _ in range(ROUNDS):
        found = proposals(problem, wanted, factor, [trial.choices for trial in trials])
        if not found:
            break
        made = measure(found)
        trials += made
        factor, before = _corrected(made, factor), factor
        if abs(factor / before - 1) <= CLOSE and any(problem.meets(trial.measured) for trial in trials):
            break
        wanted = max(1, count - 1)
    every = [*trials, *_others(trials, others)]
    for trial in every:
        trial.meets = bool(trial.measured) and problem.meets(trial.measured)
    # A uniform plan with a swap that saves nothing has no sum of harms: it is there to compare with.
    good = [trial for trial in every if trial.meets and math.isfinite(trial.harm) and math.isfinite(trial.harm_sum)]
    if not good:
        measured = [trial for trial in every if trial.measured]
        if not measured:
            nearest = problem.nearest()
            raise problem.none_meets(nearest, problem.predicted(nearest), "")
        best = min(measured, key=lambda trial: problem.excess(trial.measured))
        how = " when it is measured as a whole" if "latency" in best.measured else ""
        raise problem.none_meets(best.choices, best.measured, how)
    min(good, key=lambda trial: (trial.harm, trial.measured.get("latency", 0.0))).chosen = True
    return every


def _others(trials: Sequence[Trial], others: Sequence[Trial]) -> list[Trial]:
    """The uniform plans that are not in the shortlist too; one that is gives it its name."""
    left = []
    for other in others:
        same = next((trial for trial in trials if trial.choices == other.choices), None)
        if same is None:
            left.append(other)
        else:
            same.name += f" = {other.name}"
    return left


def _corrected(made: Sequence[Trial], factor: float) -> float:
    """The factor of the latency budget at which the prediction would have been right; as before without one."""
    first = next((trial for trial in made if trial.measured.get("latency")), None)
    return factor if first is None else first.predicted["latency"] / first.measured["latency"]
