"""SIC layer: one filter per input channel, then a 1×1; `units` of them stacked, with residual connections.

    h_0 = x
    h_j = relu(norm(PW_j(DW_j(h_{j-1}))) + h_{j-1})        j = 1 .. units-1, C -> C
    y   = PW(DW(h_{units-1})) + h_{units-1}                 C -> O; block=True: relu(norm(...) + h)

Each sum only where the shapes agree. MACs N·P·Q·(units·C·R·S + (units - 1)·C² + C·O); one unit costs what a depthwise
separable convolution does. The stride is the first unit's.
Source: Wang, Liu, Foroosh 2016, arXiv:1608.04337 (the layer). Where the norms, activations and sums stand is ours.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, deployed
from leanconv.nn.separable import DepthwiseSeparableConv2d
from leanconv.ops.fold import fold_bn_
from leanconv.registry import register
from leanconv.spec import ConvSpec, centred


@register("sic")
class SICConv2d(Operator):
    """A stack of SIC units. Stride and padding are the first unit's, the dilation every unit's; `bias` the last 1×1's.

    Args: `nn.Conv2d`'s; and
        units: how many DW + 1×1 pairs.
        residual: add a unit's input to its result where the two have one shape.
        norm_between, act_between: BatchNorm after each 1×1 but the last; ReLU after each sum but the last.
        block: the whole block: BatchNorm and ReLU after the last unit too.
    """

    paper = "Wang et al. 2016, arXiv:1608.04337"
    accepts = frozenset({"stride", "dilation", "padding_mode"})

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        units: int = 1,
        residual: bool = True,
        norm_between: bool = True,
        act_between: bool = True,
        block: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, units=units)
        self.units, self.residual, self.block = units, residual, block
        self.norm_between, self.act_between = norm_between, act_between
        factory: dict[str, Any] = {"padding_mode": spec.padding_mode, "device": device, "dtype": dtype}
        last, keeping = units - 1, centred(spec.kernel, spec.dilation) or "same"
        self.pairs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for j in range(units):
            ends = j == last
            stride, padding = (spec.stride, spec.padding) if j == 0 else ((1, 1), keeping)
            width = spec.o if ends else spec.c
            self.pairs.append(
                DepthwiseSeparableConv2d(
                    spec.c, width, spec.kernel, stride, padding, spec.dilation, 1, spec.bias and ends, **factory
                )
            )
            has_norm, has_act = (block, block) if ends else (norm_between, act_between)
            self.norms.append(nn.BatchNorm2d(width, device=device, dtype=dtype) if has_norm else nn.Identity())
            self.acts.append(nn.ReLU() if has_act else nn.Identity())
        steady = spec.stride == (1, 1) and spec.padding == keeping
        self._adds = [residual and (j > 0 or steady) and (j < last or spec.c == spec.o) for j in range(units)]

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        for pair, norm, act, adds in zip(self.pairs, self.norms, self.acts, self._adds, strict=True):
            z = norm(pair(x))
            x = act(z + x.to(z.dtype) if adds else z)  # under autocast x may be wider
        return x

    def fold(self) -> nn.Module:
        """Every BatchNorm goes into the 1×1 before it."""
        if not any(isinstance(norm, nn.BatchNorm2d) for norm in self.norms):
            return self
        folded = deployed(self)
        for j, (pair, norm) in enumerate(zip(folded.pairs, folded.norms, strict=True)):
            if isinstance(norm, nn.BatchNorm2d):
                fold_bn_(pair.pointwise, norm)
                folded.norms[j] = nn.Identity()
        return folded  # type: ignore[no-any-return]

    def _is_linear(self) -> bool:
        """One bare unit. A chain of several is no single kernel either: it pads again on the way (lemma L4)."""
        return self.units == 1 and not self.block

    def _delta(self) -> Tensor:  # O C R S: the kernel of the last unit's sum with its input
        weight = cast(nn.Conv2d, self.pairs[-1].pointwise).weight
        identity = weight.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
        if self._adds[-1]:
            channels = torch.arange(self.in_channels, device=identity.device)
            identity[channels, channels, (self.kernel_size[0] - 1) // 2, (self.kernel_size[1] - 1) // 2] = 1
        return identity

    def dense_weight(self) -> Tensor | None:  # O C R S
        if not self._is_linear():
            return None
        weight: Tensor = self.pairs[0].dense_weight() + self._delta()  # type: ignore[operator]
        return weight

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The last unit takes per input channel the best filter and column of the 1×1, of the kernel less the identity.

        That is the nearest single unit without a gram, near to it with one. Units before it start as the identity:
        what they add is zero, by their norm's weights or their 1×1's. With ReLUs between, this holds where the inputs
        are not negative. A block, and units before the last that have no sum with their input, start fresh.
        """
        if self.block or not all(self._adds[:-1]):
            return False
        for pair, norm in zip(self.pairs[:-1], self.norms[:-1], strict=True):
            still: Any = norm if isinstance(norm, nn.BatchNorm2d) else pair.pointwise
            still.weight.zero_()
            if still.bias is not None:
                still.bias.zero_()
        rest = deployed(conv).double()
        rest.weight.sub_(self._delta())
        done: bool = self.pairs[-1].project_(rest, gram)  # type: ignore[operator]
        return done

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        if self.block or self._adds[-1]:  # a ReLU stands last, or an input that has no weights
            return False
        done: bool = self.pairs[-1].scale_output_(scale, shift)  # type: ignore[operator]
        return done

    @classmethod
    def cost(
        cls,
        spec: ConvSpec,
        *,
        units: int = 1,
        residual: bool = True,
        norm_between: bool = True,
        act_between: bool = True,
        block: bool = False,
    ) -> Cost:
        weights = spec.c * (units * spec.kernel[0] * spec.kernel[1] + (units - 1) * spec.c + spec.o)
        return Cost.of(
            spec,
            macs=spec.n * spec.p * spec.q * weights,
            params=weights + spec.o * spec.bias,
            norm_params=2 * spec.c * (units - 1) * norm_between + 2 * spec.o * block,
        )

    @classmethod
    def why_not(
        cls,
        spec: ConvSpec,
        *,
        units: int = 1,
        residual: bool = True,
        norm_between: bool = True,
        act_between: bool = True,
        block: bool = False,
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if not isinstance(units, int) or units < 1:
            return f"units={units!r} must be a whole number of at least 1"
        return None
