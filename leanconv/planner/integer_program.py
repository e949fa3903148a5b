"""One choice per layer with the least total harm under limits: a 0/1 program, solved by HiGHS through scipy.

minimise Σ_l Σ_c harm[l][c] · x[l,c]
subject to Σ_c x[l,c] = 1 for every layer l;  Σ_l Σ_c cost_q[l][c] · x[l,c] ≤ limit_q for every quantity q;
Σ_l x[l, old[l]] ≤ L - 1 for every forbidden choice `old` (a no-good cut), L = number of layers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.extras import needs

Rows = Sequence[Sequence[float]]  # layer -> choice -> a number; each layer has choices of its own number
_WORST = 1e7  # times the median harm: beyond it all harms are alike, and HiGHS keeps its precision


def least_harm(
    harms: Rows, costs: Sequence[Rows], limits: Sequence[float], forbidden: Sequence[Sequence[int]] = ()
) -> list[int] | None:
    """The choice of each layer; None where no choice meets all limits and differs from all `forbidden` ones.

    Args:
        harms: of each layer's choices; infinite ones are never taken.
        costs: of each quantity, in the layout of `harms`, all finite. limits: of each quantity.
    Raises: MissingExtra without scipy.
    """
    if not harms:
        return [] if all(limit >= 0 for limit in limits) and not forbidden else None
    if not all(any(map(math.isfinite, row)) for row in harms):
        return None
    finite = [abs(harm) for row in harms for harm in row if math.isfinite(harm) and harm]
    unit = float(np.median(finite)) if finite else 1.0
    units = [harm / unit if math.isfinite(harm) else 0.0 for row in harms for harm in row]
    objective = np.clip(np.array(units), -_WORST, _WORST)
    allowed = np.array([float(math.isfinite(harm)) for row in harms for harm in row])
    rows, uppers = _bounds(harms, costs, limits)
    starts = _starts(harms)
    for old in forbidden:
        cut = np.zeros(len(objective))
        cut[[start + choice for start, choice in zip(starts, old, strict=True)]] = 1.0
        rows.append(cut)
        uppers.append(len(harms) - 1)
    found = _solved(objective, allowed, rows, uppers, harms)
    return None if found is None else _choices(found, harms)


def nearest_choice(costs: Sequence[Rows], limits: Sequence[float], allowed: Sequence[Sequence[bool]]) -> list[int]:
    """The choice whose largest cost_q / limit_q is least: what comes nearest to limits that nothing meets."""
    if not costs or not costs[0]:
        return []
    harms = [[0.0 if may else math.inf for may in row] for row in allowed]
    count = sum(map(len, harms))
    rows, uppers = _bounds(harms, costs, [max(limit, 1e-9) for limit in limits])
    # Σ cost/limit ≤ t, with one more variable t that is minimised.
    rows = [np.append(row, -1.0) for row in rows]
    objective = np.append(np.zeros(count), 1.0)
    upper = np.append([float(may) for row in allowed for may in row], np.inf)
    found = _solved(objective, upper, rows, [0.0] * len(uppers), harms, whole=count)
    if found is None:  # each layer has an allowed choice (the dense one), so that this is no input's fault
        raise RuntimeError("HiGHS found no choice in a program that has one")
    return _choices(found, harms)


def _starts(rows: Rows) -> list[int]:
    """The place of each layer's first choice among all variables."""
    return [0, *np.cumsum([len(row) for row in rows]).tolist()][:-1]


def _bounds(harms: Rows, costs: Sequence[Rows], limits: Sequence[float]) -> tuple[list[Any], list[float]]:
    """A row and its upper bound for each quantity, in units of its limit or its largest cost."""
    rows, uppers = [], []
    for cost, limit in zip(costs, limits, strict=True):
        flat = np.array([value for row in cost for value in row], float)
        unit = max(abs(limit), float(np.abs(flat).max()), 1e-30) if limit <= 0 else limit
        rows.append(flat / unit)
        uppers.append(limit / unit)
    return rows, uppers


def _solved(
    objective: Any, upper: Any, rows: list[Any], uppers: list[float], harms: Rows, whole: int | None = None
) -> Any:
    """The values of the variables, the first `whole` of them 0 or 1; None where there are none."""
    with needs("scipy", "search"):
        from scipy.optimize import Bounds, LinearConstraint, milp
    count = len(objective)
    once = np.zeros((len(harms), count))
    for layer, (start, row) in enumerate(zip(_starts(harms), harms, strict=True)):
        once[layer, start : start + len(row)] = 1.0
    constraints = [LinearConstraint(once, 1.0, 1.0)]
    if rows:
        constraints.append(LinearConstraint(np.stack(rows), -np.inf, uppers))
    kinds = np.ones(count)
    kinds[count if whole is None else whole :] = 0
    result = milp(
        objective, integrality=kinds, bounds=Bounds(0, upper), constraints=constraints, options={"mip_rel_gap": 0.0}
    )
    return result.x if result.success else None


def _choices(values: Any, harms: Rows) -> list[int]:
    return [int(np.argmax(values[start : start + len(row)])) for start, row in zip(_starts(harms), harms, strict=True)]
