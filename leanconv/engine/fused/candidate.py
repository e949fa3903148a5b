"""The candidate "fused": the folded model as a graph of whole blocks, each in the form that is fastest here."""

import torch

from leanconv.engine.candidate import Candidate
from leanconv.engine.candidate import Form as ModelForm
from leanconv.engine.eager import has_images
from leanconv.engine.fused.capture import to_graph
from leanconv.engine.fused.choose import choose
from leanconv.engine.fused.dtypes import keep_in
from leanconv.engine.fused.program import Program
from leanconv.engine.fused.rewrite import rewrite
from leanconv.engine.workbench import Workbench
from leanconv.kernels import cpu_reason

# Seconds that measuring the blocks of one model may take.
MEASURING_S = 30.0


def _why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if bench.device.type != "cpu":
        return f"its kernels are for the CPU; the model is on {bench.device}"
    if (kind := dtype or bench.dtype) not in (torch.float32, torch.bfloat16):
        return f"its kernels take float32 and bfloat16, not {str(kind).removeprefix('torch.')}"
    return None if has_images(bench) else "the model has no 2-D convolution"


def _seconds(bench: Workbench) -> float:
    return 3.0 + 0.1 * bench.layers + 8 * bench.forward_s


def _prepare(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    graph, half = rewrite(to_graph(bench.program)), (dtype or bench.dtype) == torch.bfloat16
    if half:
        keep_in(graph, torch.bfloat16)
    with torch.no_grad():
        runs, blocks = choose(graph, seconds=MEASURING_S)
    form = bench.from_flat(Program(graph, runs), widen=not half)
    blocks.note = cpu_reason() and f"without kernels of its own: {cpu_reason()}"
    form.blocks = blocks  # type: ignore[attr-defined]
    return form


FUSED = Candidate("fused", _why_not, _seconds, _prepare, any_shape=True, widens=True)
