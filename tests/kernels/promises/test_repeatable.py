"""Repeatable: a kernel gives the same bits in every call, with any number of threads, and from any cache."""

import pytest
import torch

from leanconv.kernels.cpu.tuning import cost_model
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum
from tests.kernels.promises.catalogue import SAVING, cases, forced, laid, maps_for, weights_for

pytestmark = pytest.mark.usefixtures("halide")
THREADS = (1, 1, 2, 3, 5)
SIZES = ((1, 23, 30), (3, 14, 14))
UNITS = (cost_model.UNITS, 5)  # of an average: at these sizes of one row each, and of several


def runs(case, weights, maps, averages, l2=None):
    """The case's result and average, with each number of threads."""
    before, found = torch.get_num_threads(), []
    with forced(case):
        bound = case.bound(weights, l2)
        try:
            for threads in THREADS:
                torch.set_num_threads(threads)
                found.append(bound.run(maps, averages))
        finally:
            torch.set_num_threads(before)
    return found


@torch.no_grad()
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_same_bits(case, units, monkeypatch):
    """Small caches: blocks of few rows, and none of them where a unit of the average begins."""
    monkeypatch.setattr(cost_model, "UNITS", units)
    form = case.form
    weights = [w.to(case.dtype) for w in weights_for(form, torch.randn)]
    for n, h, w in SIZES:
        maps = laid(case, maps_for(form, n, h, w, torch.randn))
        averages = [averaged(x) for x in maps] if isinstance(form, GatedSum) else []
        made = runs(case, weights, maps, averages)
        if case.name not in SAVING:  # these save products in blocks, which a cache holds
            made += runs(case, weights, maps, averages, l2=20_000)
        for threads, (y, means) in zip(THREADS * 2, made, strict=False):
            assert torch.equal(y, made[0][0]), f"{case} with {threads} threads at {n, h, w}"
            assert torch.equal(means, made[0][1]), f"the average of {case} with {threads} threads at {n, h, w}"
