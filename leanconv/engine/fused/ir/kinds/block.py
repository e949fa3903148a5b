"""A block: a chain of convolutions over a concatenation, then residual, activation, average.

    h = cat(maps)
    for each stage:  h = act(conv(h) + bias);  the last one reads h · gate, where the block has a gate
    y = act(h + residual)

Its implementations are listed in `lowering/implementations.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node, Op, Primitive, T
from leanconv.engine.fused.ir.stages import Branches, Stage
from leanconv.ops.activations import ACTIVATIONS
from leanconv.ops.forms import Stencil
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable


@dataclass(frozen=True, repr=False)
class Block(Op):
    """See the formula above. Inputs of its node: `concat` maps, then the residual, then the gate."""

    stages: tuple[Stage | Branches, ...]
    concat: int = 1
    residual: bool = False
    gate: bool = False
    act: str = ""  # after the residual
    parallel: Stage | None = None  # a 1x1 over the same input, added to the only stage before its activation
    average: bool = False  # a second result: the average of y over height and width, `N O 1 1`

    def is_bare(self, *, act: bool = False) -> bool:
        """One convolution and nothing else (but its activation, with `act`)."""
        extra = self.residual or self.gate or self.act or self.parallel
        return len(self.stages) == 1 and not extra and (act or not self.stages[0].act)

    def operand_dtypes(self, node: Node) -> list[torch.dtype]:
        return [node.dtype] * (len(node.inputs) - self.gate) + [torch.float32] * self.gate

    def verify(self, node: Node) -> str:
        maps, rest = node.inputs[: self.concat], node.inputs[self.concat :]
        if len(rest) != self.residual + self.gate:
            return f"a block reads {len(node.inputs)} maps"
        sizes = {(x.shape[0], *x.shape[2:]) for x in maps}
        if len(sizes) != 1:
            return f"it reads maps of different sizes: {', '.join('x'.join(map(str, x.shape)) for x in maps)}"
        (n, h, w), c = sizes.pop(), sum(x.channels for x in maps)
        for stage in self.stages:
            if stage.c != c:
                return f"a convolution of {stage.c} channels reads {c}"
            if isinstance(stage, Branches) and len(stage.sizes(h, w)) != 1:
                return "branches of different sizes stand side by side"
            (h, w), c = stage.size(h, w), stage.o
        if node.shape != (n, c, h, w) or (self.residual and rest[0].shape != node.shape):
            return f"a block gives {n}x{c}x{h}x{w}, not {'x'.join(map(str, node.shape))}"
        return ""

    def work(self, node: Node) -> tuple[int, int]:
        n, _, h, w = node.inputs[0].shape
        macs = weights = skipped = 0
        for i, stage in enumerate(self.stages):
            rows, columns = stage.size(h, w)
            stages = stage.stages if isinstance(stage, Branches) else [stage]
            own = sum(each.weight.numel() for each in stages)
            if i == 0 and self.parallel:  # a 1x1 beside a grouped one need not read the group's own channels again
                own += self.parallel.weight.numel() - self.parallel.weight.numel() // stage.groups
            macs, weights = macs + n * rows * columns * own, weights + own
            if i == 0 and isinstance(stage, Stage) and not self.residual:  # pixels that the stride skips
                read = min(h, rows * stage.kernel[0]) * min(w, columns * stage.kernel[1])
                skipped = n * stage.c * (h * w - read)
            h, w = rows, columns
        return macs, node.traffic + weights - skipped

    def primitive(self, node: Node) -> Primitive | None:
        if (self.residual and self.stages[-1].act) or any(act not in ACTIVATIONS for act in self._acts() if act):
            return None
        channels = tuple(x.channels for x in node.inputs[: self.concat])
        if not self.is_separable:
            return self._grouped(channels)
        return None if self.parallel else self._separable(channels)

    @property
    def is_separable(self) -> bool:
        """Whether its primitive, if it has one, is `Separable`; otherwise it is `Grouped`."""
        head = self.stages[0]
        return isinstance(head, Branches) or head.depthwise or head.subsampling

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        maps = [*inputs[: self.concat], inputs[self.concat] if self.residual else None]
        return [*maps, inputs[-1] if self.gate else None] if self.is_separable else maps

    def _acts(self) -> list[str]:
        inner = [each.act for stage in self.stages if isinstance(stage, Branches) for each in stage.stages]
        return [self.act, *(stage.act for stage in self.stages), *inner]

    @property
    def _final_act(self) -> str:
        return (self.act if self.residual else self.act or self.stages[-1].act) or "none"

    def _separable(self, channels: tuple[int, ...]) -> Primitive | None:
        stages: list[tuple[Stencil, ...]] = []
        weights: list[Tensor] = []
        projection: Stage | None = None
        for index, stage in enumerate(self.stages):
            final = index == len(self.stages) - 1
            if isinstance(stage, Branches):
                stages.append(stage.stencils())
                weights += [w for each in stage.stages for w in each.weights]
            elif stage.depthwise and not (final and stage.pointwise):
                # The last stencil's activation is the form's own, which comes after the residual.
                stages.append((stage.stencil(0, "" if final else stage.act),))
                weights += stage.weights
            elif final and stage.subsampling:
                if stage.stride != (1, 1):
                    stages.append((Stencil(0, stage.c, stride=stage.stride, identity=True),))
                projection = stage
                weights += stage.weights
            else:
                return None
        if self.gate and projection is None:
            return None
        return Separable(
            channels,
            tuple(stages),
            None if projection is None else projection.o,
            projection is not None and projection.bias is not None,
            self._final_act,
            self.residual,
            self.gate,
            self.average,
        ), weights

    def _grouped(self, channels: tuple[int, ...]) -> Primitive | None:
        stage, project = self.stages[0], self.stages[1] if len(self.stages) == 2 else None
        if len(self.stages) > 2 or self.gate or isinstance(stage, Branches) or isinstance(project, Branches):
            return None
        if project is not None and (not project.pointwise or self.parallel):
            return None
        if self.parallel and not (stage.kernel[0] % 2 and stage.kernel[1] % 2):
            return None
        weights = [stage.weight]
        weights += [] if self.parallel is None else [self.parallel.weight]
        weights += [] if stage.bias is None else [stage.bias]
        weights += [] if project is None else project.weights
        return Grouped(
            channels,
            stage.o,
            stage.kernel,
            stage.stride,
            stage.dilation,
            stage.padding,
            stage.groups,
            stage.interleaved,
            self.parallel is not None,
            stage.bias is not None,
            "none" if project is None else stage.act or "none",
            None if project is None else project.o,
            project is not None and project.bias is not None,
            self._final_act,
            self.residual,
            self.average,
        ), weights

    def __repr__(self) -> str:
        chain = " ".join(f"{stage.label}{'+' + stage.act if stage.act else ''}" for stage in self.stages)
        chain += " || 1x1" if self.parallel else ""
        extras = [
            word for word, there in (("residual", self.residual), ("gate", self.gate), (self.act, self.act)) if there
        ]
        return f"[{self.stages[0].c}->{self.stages[-1].o} {' '.join([chain, *extras])}]"
