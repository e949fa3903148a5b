"""Cost: the MACs, parameters and bytes of one layer, computed from its sizes alone."""

from dataclasses import dataclass
from typing import Self

from leanconv.spec import ConvSpec


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates, parameters and compulsory bytes of one layer for one input.

    Attributes:
        macs: MACs by the paper's count.
        executed_macs: MACs that our default implementation runs. HetConv's grouped form multiplies its zero blocks.
        params: weights and biases, without normalisation.
        norm_params: learnable parameters of the operator's normalisation layers.
        bytes: float32 bytes if input, output and every parameter are transferred once.
    """

    macs: int
    executed_macs: int
    params: int
    norm_params: int
    bytes: int

    @classmethod
    def of(
        cls, spec: ConvSpec, macs: int, params: int, *, executed_macs: int | None = None, norm_params: int = 0
    ) -> Self:
        """Return the cost of an operator that reads `spec`'s input and writes its output."""
        numbers = spec.n * (spec.c * spec.h * spec.w + spec.o * spec.p * spec.q) + params + norm_params
        return cls(macs, macs if executed_macs is None else executed_macs, params, norm_params, 4 * numbers)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.macs + other.macs,
            self.executed_macs + other.executed_macs,
            self.params + other.params,
            self.norm_params + other.norm_params,
            self.bytes + other.bytes,
        )


def dense_cost(spec: ConvSpec) -> Cost:
    """Return the cost of `nn.Conv2d`: N·P·Q·O·(C/G)·R·S MACs and O·(C/G)·R·S parameters (+ O with a bias)."""
    weights = spec.o * (spec.c // spec.groups) * spec.kernel[0] * spec.kernel[1]
    return Cost.of(spec, macs=spec.n * spec.p * spec.q * weights, params=weights + spec.o * spec.bias)
