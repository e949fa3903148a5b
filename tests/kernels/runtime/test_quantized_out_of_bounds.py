"""Kernels on 8-bit integers touch nothing beside their maps, averages, packed numbers and results."""

import pytest
import torch

from leanconv.kernels import backend
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.pool import MaxPool
from leanconv.ops.upsample import Upsample
from tests.kernels.quantized_cases import (
    AROUND,
    grouped_forms,
    maps_of,
    quantized_form,
    separables,
    weights_of,
)
from tests.kernels.runtime.test_out_of_bounds import Fence


def forms(c, o):
    others = {
        "gated sum": GatedSum((c, 4), o, True, True, "relu", average=True),
        "upsample": Upsample((c,), o, 2, True, average=True),
        "pool": MaxPool(c, (3, 3), (2, 2), AROUND, True),
    }
    return separables(c, o) | grouped_forms(min(c, 8), o) | others


@pytest.mark.parametrize("given", ["bytes", "float32", "planes"])
@pytest.mark.parametrize(("c", "o"), [(5, 3), (16, 32), (24, 40), (128, 70)])
@pytest.mark.parametrize("size", [(3, 5), (2, 67)])
def test_quantized(c, o, size, given):
    fence = Fence()
    for seed, (name, form) in enumerate(forms(c, o).items()):
        if min(form.size(*size)) < 1 or (given != "bytes" and isinstance(form, MaxPool)):
            continue
        generator = torch.Generator().manual_seed(seed)
        quantized = quantized_form(form, generator, float_output=not form.average and seed % 2 == 0)
        maps, averages = maps_of(quantized, 2, size, generator)
        first = isinstance(form, GatedSum)
        if given != "bytes":
            for index in range(first, first + len(quantized.inputs)):
                x = torch.randn(maps[index].shape, generator=generator)
                maps[index] = x if given == "planes" else x.contiguous(memory_format=torch.channels_last)
        bound = backend().bind(quantized, weights_of(form, generator))
        if bound.takes(*maps):
            fence.add(name, bound, maps, averages)
    assert len(fence.cases) >= 40
    fence.hold()
