"""The lines of the plan that a search returns, each with the figures that decided."""

import math
from collections.abc import Sequence

from leanconv.convert import Swap, reasons
from leanconv.planner.shortlist import Choices, Problem
from leanconv.planner.trial_swaps import DENSE, Layer


def lines_of(problem: Problem, layers: Sequence[Layer], choices: Choices) -> list[Swap]:
    """Every convolution: what a swap saves and harms, or why the layer stays dense."""
    lines = []
    for layer in layers:
        kept, to = layer.kept, choices.get(layer.name)
        if to is not None:
            line = layer.swaps[to]
            harm = problem.harms[layer.name].get(to, 0.0)
            why = f"saves {_share(problem, layer.name, to)}, harm {harm:.3g}"
            lines.append(Swap(line.name, line.to, line.before, line.after, why, line.spec, line.calls))
        else:
            reason = (
                _stays(problem, layer)
                if layer.swaps
                else kept.reason or f"{reasons.TOO_HARMFUL}: no candidate can be built"
            )
            lines.append(Swap(kept.name, None, kept.before, None, reason, kept.spec, kept.calls))
    return lines


def _stays(problem: Problem, layer: Layer) -> str:
    """Why a layer that has candidates stays dense."""
    useful = problem.harms.get(layer.name, {})
    first = problem.costs[problem.budget.limits[0].quantity]
    if not useful:
        best, row = max(layer.swaps, key=lambda to: first.saved(layer.name, to)), first.rows[layer.name]
        return f"{reasons.NO_GAIN}: {best} takes {row[best] / max(row[DENSE], 1e-12):.2f}x of its {first.quantity}"
    bearable = {to: harm for to, harm in useful.items() if math.isfinite(harm)}
    if not bearable:
        return f"{reasons.TOO_HARMFUL}: {', '.join(useful)}"
    to = min(bearable, key=lambda each: bearable[each])
    return f"{reasons.DENSE_BETTER}: {to} would save {_share(problem, layer.name, to)} at harm {bearable[to]:.3g}"


def _share(problem: Problem, layer: str, to: str) -> str:
    return " and ".join(
        f"{100 * costs.saved(layer, to) / costs.dense:.1f} % of the {quantity}"
        for quantity, costs in problem.costs.items()
    )
