"""Which blocks of a network compute in integers: as many as are faster there and keep the loss within its limit.

1. Ranges of all maps from the calibration data, in float32.
2. Times: every block in both types. Those that are faster in integers, conversions counted, are chosen (speed.py).
3. The loss of the whole network. If it is above the limit, each block's own harm is measured (harm.py). The most
   harmful go back to float32: the fewest that suffice, by bisection. Blocks between them that no longer gain go too.
"""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from leanconv.deploy.int8 import Calibration
from leanconv.engine.candidate import ModelForm
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Graph, Node, Run
from leanconv.engine.fused.ir.kinds.integer import Integer, Quantize
from leanconv.engine.fused.lowering.autotune import autotune
from leanconv.engine.fused.lowering.implementations import ONE_KERNEL
from leanconv.engine.fused.lowering.report import TuningReport
from leanconv.engine.fused.passes.quantization import Quantizer
from leanconv.engine.fused.quantization.harm import harms
from leanconv.engine.fused.quantization.observe import observe
from leanconv.engine.fused.quantization.speed import Times, faster_in_integers
from leanconv.errors import BadInput
from leanconv.kernels import Target, backend

NO_KERNEL = "no int8 kernel computes it here (they need a C compiler)"
HARM_CALLS = 2  # calibration batches on which each block's own harm is measured

Tuned = tuple[Graph, dict[Node, Run], TuningReport]
# From a tuned graph to a form with the model's call signature.
MakeForm = Callable[[Graph, dict[Node, Run]], ModelForm]


@dataclass(frozen=True)
class Found:
    """The blocks that compute in integers, and the loss of the network."""

    chosen: frozenset[Node]
    loss: float


class Search:
    """The search for one network. `tuned`: its float32 graph, a function for each node, and the report on them."""

    def __init__(
        self,
        tuned: Tuned,
        calibration: Calibration,
        form: MakeForm,
        *,
        seconds: float,
        clock: str = "wall",
        target: Target | None = None,
    ) -> None:
        """`seconds`: the most that measuring integer blocks may take; `clock`, `target`: as of `autotune`."""
        self.graph, runs, self.report = tuned
        self.calibration, self._form, self.target = calibration, form, target
        self._seconds, self._clock = seconds, clock
        self.program = Program(self.graph, runs)
        calls: Sequence[Sequence[Tensor]] = calibration.tensors
        self.quantizer = Quantizer(self.graph, observe(self.graph, self.program, calls))
        self.harms: dict[Node, float] = {}
        self.times = self._times()

    def best(self) -> Tuned:
        """The tuned graph of the decision; its report says which blocks stay float32, and why.

        Raises: BadInput if no block is faster in integers, or none keeps the limit.
        """
        fast = faster_in_integers(self.quantizer, self.times, {*self.quantizer.nodes})
        if not fast:
            able = any(ms < math.inf for ms in self.times.narrow.values())
            why = "float32 is as fast" if able else backend().why_not() or NO_KERNEL
            raise BadInput(f"no block of the model is faster in int8 here: {why}")
        found = self._within_limit(fast)
        if not found.chosen:
            least, limit = min(self.harms.values()), self.calibration.limit
            raise BadInput(
                f"no block can compute in int8 within max_loss={limit:g}: the least harmful alone is a relative squared"
                f" error of {least:.2g} in the output"
            )
        graph, runs, report = self._tuned(found.chosen)
        for node in self.quantizer.graph.nodes:
            if node in self.quantizer.left_out or (node in self.quantizer.nodes and node not in found.chosen):
                report.in_float32[_label(node)] = self._why(node, fast)
        count = len(self.quantizer.nodes) + len(self.quantizer.left_out)
        limit, how = self.calibration.limit, self.calibration.how
        report.int8 = f"int8: {len(found.chosen)} of {count} blocks, {how} {found.loss:.2g} of at most {limit:g}"
        return graph, runs, report

    def _within_limit(self, fast: Set[Node]) -> Found:
        """The most blocks of `fast` that keep the limit, by the order of their harm."""
        found = self._judged(fast)
        if self.calibration.accepts(found.loss):
            return found
        self.harms = harms(self.quantizer, self.program, fast, self.calibration.tensors[:HARM_CALLS], self.target)
        order = list(self.harms)
        fails, holds, best = 0, len(order), Found(frozenset(), 0.0)
        while holds - fails > 1:
            count = (holds + fails) // 2
            found = self._judged({*order[count:]})
            if self.calibration.accepts(found.loss):
                holds, best = count, found
            else:
                fails = count
        fewer = faster_in_integers(self.quantizer, self.times, best.chosen)
        if fewer and fewer != best.chosen and self.calibration.accepts((found := self._judged(fewer)).loss):
            best = found
        return best

    def _judged(self, chosen: Set[Node]) -> Found:
        graph, runs, _ = self._tuned(chosen)
        return Found(frozenset(chosen), self.calibration.loss(self._form(graph, runs)))

    def _tuned(self, chosen: Set[Node]) -> Tuned:
        graph, _ = self.quantizer.rewrite(chosen)
        with torch.no_grad():
            runs, report = autotune(graph, seconds=self._seconds, clock=self._clock, target=self.target)
        return graph, runs, report

    def _times(self) -> Times:
        """Times of all blocks in integers, from a graph in which all are."""
        graph, made = self.quantizer.rewrite({*self.quantizer.nodes})
        with torch.no_grad():
            _, report = autotune(graph, seconds=self._seconds, clock=self._clock, target=self.target, splits=False)
            narrow = {
                old: report.chosen_ms[new] if report.names.get(new) in ONE_KERNEL else math.inf
                for old, new in made.items()
                if isinstance(new.op, Integer) and new in report.names
            }
            return Times(self.report.chosen_ms, narrow, self._conversion())

    def _conversion(self) -> float:
        """Milliseconds of one number between float32 and uint8, from the largest map."""
        maps = [node for node in self.quantizer.nodes if node in self.quantizer.levels.of]
        if not maps or self._seconds <= 0:
            return 0.0
        largest = max(maps, key=lambda node: node.numbers)
        step = Node(Quantize(self.quantizer.levels.of[largest]), [largest], largest.shape, torch.uint8, "quantize")
        _, report = autotune(
            Graph([step], [largest], [step]), seconds=self._seconds, clock=self._clock, target=self.target
        )
        return report.chosen_ms[step] / largest.numbers

    def _why(self, node: Node, fast: Set[Node]) -> str:
        if node in self.quantizer.left_out:
            return self.quantizer.left_out[node]
        if node in self.harms and node in fast:
            return f"int8 in it alone is a relative squared error of {self.harms[node]:.2g} in the output"
        wide, narrow = self.times.wide.get(node, 0.0), self.times.narrow.get(node, math.inf)
        if narrow == math.inf:
            return NO_KERNEL
        return f"not faster in int8 with its conversions ({narrow:.3g} ms, float32 {wide:.3g} ms)"


def _label(node: Node) -> str:
    return f"{node.op!r} {'x'.join(map(str, node.shape))} ({node.name})"
