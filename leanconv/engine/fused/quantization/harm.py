"""What the network's answer loses by each block alone: that block in integers, all others in float32."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leanconv.deploy.int8.calibration import Loss
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Node, Run
from leanconv.engine.fused.ir.kinds.values import AverageOf
from leanconv.engine.fused.lowering.implementations import plain_implementation
from leanconv.engine.fused.lowering.kernels import kernel
from leanconv.engine.fused.passes.quantization import Quantizer, maps_of
from leanconv.kernels import Target
from leanconv.ops.integer_reference import dequantized, quantized


@torch.no_grad()
def harms(
    quantizer: Quantizer,
    program: Program,
    chosen: Iterable[Node],
    calls: Sequence[Sequence[Tensor]],
    target: Target | None = None,
) -> dict[Node, float]:
    """The relative squared error of the network's output by each of the `chosen` blocks, the worst first.

    Args:
        program: runs the quantizer's graph in float32.
        calls: the tensors of the batches to look at. One call's values are kept at a time.
    """
    sums = {node: Loss() for node in chosen}
    runs = {node: _run(quantizer, node, target) for node in sums}
    averages = {node.inputs[0]: node for node in quantizer.graph.nodes if isinstance(node.op, AverageOf)}
    for tensors in calls:
        values = program.values(*tensors)
        answer = program.again(values, {})
        for node, loss in sums.items():
            made = runs[node](*_inputs(quantizer, node, program, values))
            y, *average = made if isinstance(made, tuple) else (made,)
            changed = {program.places[node]: dequantized(y, quantizer.levels.of[node])}
            if average and node in averages:
                changed[program.places[averages[node]]] = average[0]
            loss.add(answer, program.again(values, changed))
    found = {node: loss.value for node, loss in sums.items()}
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _run(quantizer: Quantizer, node: Node, target: Target | None) -> Run:
    op = quantizer.integer(node)
    there = {*maps_of(node)}
    inputs = [replace(x, dtype=torch.uint8) if x in there else x for x in node.inputs]
    made = replace(node, op=op, inputs=inputs, dtype=torch.uint8)
    return kernel(made, target) or plain_implementation(made)  # type: ignore[no-any-return]


def _inputs(quantizer: Quantizer, node: Node, program: Program, values: Sequence[Tensor]) -> list[Tensor]:
    """The node's inputs in the float call, its maps in uint8."""
    there, of = {*maps_of(node)}, quantizer.levels.of
    read = [values[program.places[x]] for x in node.inputs]
    return [quantized(value, of[x]) if x in there else value for x, value in zip(node.inputs, read, strict=True)]
