"""Exact mode: on small integers every kernel gives the sum itself, with tolerance 0, in every number type."""

import re
from pathlib import Path

import pytest
import torch

from leanconv.kernels.cpu.binders import BINDERS
from leanconv.kernels.cpu.compilation.build import RUNTIME
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum
from tests.kernels.promises.catalogue import (
    DIRECT,
    ROOMS,
    SAVING,
    Case,
    cases,
    forced,
    laid,
    maps_for,
    pipelines_here,
    reference,
    weights_for,
    wide,
)

pytestmark = pytest.mark.usefixtures("halide")
DECIDED = 200.0  # a difference of averages whose sigmoid is 0 or 1 in float32


def whole(largest, step=1):
    """A draw of integers from -largest to largest, times `step`."""
    return lambda size: step * torch.randint(-largest, largest + 1, size).float()


def decided(means, weight, bias):
    """The average of a gated sum's first branch, such that its gates are 0, ½ or 1."""
    other = torch.cat(means, 1) @ weight.T + bias
    return other + DECIDED * torch.randint(-1, 2, other.shape)


@torch.no_grad()
@pytest.mark.parametrize("case", cases(), ids=str)
def test_exact_on_integers(case):
    """Winograd's weights are multiples of 4: halves of them, and halves of those, are integers still."""
    form = case.form
    weights = weights_for(form, whole(1, 4 if case.name.startswith("Winograd") else 1))
    # Even maps for Strassen, whose halves are of channels and pixels.
    for n, h, w, how in ((2, 9, 11, "crop"), (1, 12, 14, "channels_last"), (3, 6, 5, "slice")):
        maps = maps_for(form, n, h, w, whole(1))
        averages = []
        if isinstance(form, GatedSum):
            means = [whole(2)((n, c)) for c in form.channels]
            averages = [decided(means, *weights[:2]), *means]
        exact, exact_means = reference(form, wide(maps), wide(weights), wide(averages))
        exact = exact.float().double()  # of gates: 1e-87 is 0
        assert torch.equal(exact.to(case.dtype).double(), exact), "the case is not exact in its own number type"
        with forced(case):
            bound = case.bound([w.to(case.dtype) for w in weights])
            y, found = bound.run(laid(case, maps, how), averages)
        assert torch.equal(y.double(), exact), f"{case} at {n, h, w}"
        assert torch.equal(found, exact_means.float()), f"the average of {case} at {n, h, w}"
        if case.name in DIRECT:
            assert {getattr(each, "method", "direct") for each in bound._kernels.values()} == {"direct"}


def test_every_kernel_has_a_case(monkeypatch):
    """A new form, and a new pipeline, needs a case in the catalogue."""
    asked = set()

    def kernel(pipeline, core, tile):
        asked.add(pipeline)
        return 0, None

    for room in ROOMS:
        monkeypatch.setattr(room, "kernel", kernel)
    for name in (*DIRECT, *SAVING):
        case = Case(name)
        weights, maps = weights_for(case.form, torch.randn), maps_for(case.form, 1, 12, 14, torch.randn)
        with forced(case):
            case.bound(weights)._prepare(*laid(case, maps))
    assert {type(form) for form in (DIRECT | SAVING).values()} == set(BINDERS)
    assert asked == pipelines_here()


def functions():
    """The functions of the C runtime that compute on maps, from its headers: those that take a number of threads."""
    text = "".join(path.read_text() for path in sorted(Path(RUNTIME).glob("*.h")))
    return set(re.findall(r"^int (lc_\w+)\([^)]*\bint threads\)", text, re.M))


HERE, ROOM = "tests/kernels/promises/test_exact.py::test_exact_on_integers", "tests/kernels/runtime"
# Which test shows that each is exact on integers, with tolerance 0.
SHOWN = {
    "lc_run": HERE,
    "lc_copy": f"{ROOM}/test_transpose.py::test_every_number_is_where_pytorch_puts_it",
    "lc_int8": "tests/kernels/bound/test_quantized.py::test_separable",
    "lc_depthwise": f"{ROOM}/test_depthwise.py::test_exact_on_integers",
    "lc_depthwise_weight": f"{ROOM}/test_depthwise.py::test_exact_on_integers",
    "lc_branch": f"{ROOM}/test_separable_branch.py::test_integers_are_exact",
    "lc_branch_gradients": f"{ROOM}/test_separable_branch.py::test_integers_are_exact",
    "lc_pointwise": f"{ROOM}/test_pointwise.py::test_integers_are_exact",
    "lc_pointwise_weight": f"{ROOM}/test_pointwise.py::test_integers_are_exact",
    "lc_hetconv": f"{ROOM}/test_hetconv.py::test_integers_are_exact",
    "lc_hetconv_weight": f"{ROOM}/test_hetconv.py::test_integers_are_exact",
    "lc_gated_sum": f"{ROOM}/test_gated_sum.py::test_exact_on_integers",
    "lc_batch_norm_act": f"{ROOM}/test_batch_norm_act.py::test_exact_on_integers",
    "lc_normalized_gated_sum": f"{ROOM}/test_normalized_gated_sum.py::test_exact_on_integers",
}


def test_every_function_of_the_runtime_has_a_test():
    assert set(SHOWN) == functions()
    for name, place in SHOWN.items():
        file, _, test = place.partition("::")
        text = (Path(__file__).parents[3] / file).read_text()
        assert f"def {test}(" in text, f"{name}: {place} is no test"


def test_a_wrong_sum_is_seen():
    """A weight that is off by one changes a result: the data of a case reach its weights."""
    for name, form in DIRECT.items():
        torch.manual_seed(0)
        weights, maps = weights_for(form, whole(1)), maps_for(form, 2, 9, 11, whole(1))
        averages = [averaged(x) for x in maps] if isinstance(form, GatedSum) else []
        before = reference(form, maps, weights, averages)[0]
        for index, weight in enumerate(weights):
            seen = []
            for at in range(0, weight.numel(), -(-weight.numel() // 11)):
                weight.view(-1)[at] += 1
                seen.append(not torch.equal(reference(form, maps, weights, averages)[0], before))
                weight.view(-1)[at] -= 1
            assert any(seen), f"{name}: weights {index}"
