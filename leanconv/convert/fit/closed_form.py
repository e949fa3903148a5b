"""An operator becomes what is nearest to the best dense layer for its inputs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanconv.convert.fit.moments import Solution, Sums, solve
from leanconv.convert.fit.refine import Example, divided, error
from leanconv.copies import copied
from leanconv.nn import Operator, SPLConv2d
from leanconv.nn.quiet_gates import SCALE, has_gates
from leanconv.nn.starts import mean_squares

# Shares of an input's mean square that hold the weights to the old ones. The first; where fewer than ENOUGH pixels a
# number of the patch decide, the best on the held-out images.
RIDGES, ENOUGH = (1e-3, 0.03, 1.0), 10
# Deviations by which SPLConv's output may rise where a norm takes that away. Its ReLU then cuts 2 % of a branch, and
# the gates are near one half.
LIFT = 3.0


def become_nearest_(
    new: Operator, old: nn.Conv2d, sums: Sums, judged: Sequence[Example], *, centred: bool, scales: Tensor | None
) -> Tensor | None:
    """Take the member of the family that is nearest to the least-squares solution; None without a closed form.

    Where a norm alone reads the layer, gates have a second start: the solution times a small factor, which the norm
    takes away. `nn/quiet_gates.py` says why they are then near one half.

    Args:
        sums: with second moments, of the inputs of `new` and the outputs of `old`.
        judged: held-out examples, for the strength of the ridge.
        centred: whether a constant is free in the solution.
        scales: of the outputs, by norms that alone read the layer; None where something else reads it.
    Returns: the factor of each output, `O`; ones but in such a start.
    """
    ridges = RIDGES[:1] if sums.count >= ENOUGH * sums.x.shape[1] else RIDGES
    found: list[tuple[float, dict[str, Tensor], Tensor]] = []

    def keep(factor: Tensor) -> None:
        state = {key: value.clone() for key, value in new.state_dict().items()}
        found.append((error(divided(new, factor), judged, scales=scales), state, factor))

    for ridge in ridges:
        solution = solve(sums, old, centred=centred, ridge=ridge)
        if not _nearest_(new, old, sums, solution):
            return None
        keep(torch.ones_like(sums.y))
        if scales is not None and has_gates(new):
            keep(_quiet_(new, old, solution))
    _, state, factor = min(found, key=lambda each: math.inf if math.isnan(each[0]) else each[0])
    new.load_state_dict(state)
    return factor


@torch.no_grad()
def _quiet_(new: Operator, old: nn.Conv2d, solution: Solution) -> Tensor:
    """Take the solution with outputs of deviation `SCALE` or less; by which factor, for each output."""
    deviation = mean_squares(solution.weight.flatten(1), solution.gram).sqrt()
    factor = (SCALE / deviation.clamp_min(1e-30)).clamp_max(1.0)
    best = copied(old).double().requires_grad_(False)
    best.weight.copy_(solution.weight * factor[:, None, None, None])
    lift = LIFT if isinstance(new, SPLConv2d) else 0.0
    best.bias = nn.Parameter(lift * deviation * factor, requires_grad=False)
    new.project_(best, solution.gram)
    return factor


@torch.no_grad()
def _nearest_(new: Operator, old: nn.Conv2d, sums: Sums, solution: Solution) -> bool:
    best = copied(old).double().requires_grad_(False)
    best.weight.copy_(solution.weight)
    if best.bias is not None and solution.bias is not None:
        best.bias.copy_(solution.bias)
    if not new.project_(best, solution.gram):
        return False
    weight = new.dense_weight()
    # The weights differ from the best ones, and so does the mean. A larger kernel sees other pixels too: its bias waits
    # for the steps that follow.
    if best.bias is not None and weight is not None and weight.shape == solution.weight.shape:
        (x, _), rest = sums.means(), solution.weight - weight.to(solution.weight)
        shift = (rest.reshape(len(x), -1, x.shape[1]) @ x[..., None]).flatten()
        if not new.scale_output_(torch.ones_like(shift), shift):
            best.bias.add_(shift)
            new.project_(best, solution.gram)
    return True
