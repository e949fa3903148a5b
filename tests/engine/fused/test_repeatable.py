"""A tuned form gives the same bits in every call, with any number of threads at run time."""

import pytest
import torch

import leanconv as lc
from leanconv.engine import workbench
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.capture import dynamic_shapes
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.workbench import Workbench
from tests.engine.fused.test_candidate import randomised

THREADS = (1, 2, 3, 5, 1)


@pytest.fixture(autouse=True)
def on_kernels(monkeypatch):
    """Nothing is measured: a kernel runs wherever there is one. Shapes are fixed."""
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    monkeypatch.setattr(dynamic_shapes, "OPENING_S", 0.0)
    monkeypatch.setitem(
        IMPLEMENTATIONS, Block, [each for each in IMPLEMENTATIONS[Block] if each.name in ("aten", "kernel")]
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", ["splconv", "spconv", "hetconv(part=4)"])
def test_unets(conv, dtype):
    """Averages and gated sums, pooling, upsampling, concatenations; twice each: step by step, then by the plan."""
    model = randomised(lc.load(f"leanconv:unet?base=8&levels=1&conv={conv}"))
    x, threads = torch.randn(2, 3, 48, 36), torch.get_num_threads()
    form = FUSED.prepare(Workbench(model, (x,), {}, 1), dtype)
    try:
        first = form(x)
        for count in THREADS:
            torch.set_num_threads(count)
            for _ in range(2):
                assert torch.equal(form(x), first), f"{count} threads"
    finally:
        torch.set_num_threads(threads)
