"""SPLConv: SPConv with the representative branch turned into a large kernel: depthwise, dilated depthwise, 1×1.

    u = DW_kxk(x[:, :c])                                  c = floor(alpha · C)
    v = DW_exe(u; dilation rate)
    a = ReLU(BN(conv_1x1(v)))
    b = conv_1x1(x[:, c:])
    y = gated_sum(a, b)                                   softmax over the pair of their averages

Fresh weights learn slowly through the gate: `nn/quiet_gates.py` says why, and starts them well.
MACs N·P·Q·(c·R·S + c·e² + C·O). The default e = k is a 7×7 field from 18 taps for k = 3, rate = 2: the paper's eq. 7
counts ceil(k/rate)² taps instead, but its printed table fits only the full kernel.
Source: Yao, Jie, Guo, Liu, "SPLConv: Channel-Separated Convolution Using Large Convolution Kernels", eq. 1-5.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, deployed, kaiming_fan_out_, needs_odd_centred, needs_stride_1_or_2
from leanconv.nn.spconv import average_to_stride, split_channels, why_not_split
from leanconv.nn.starts import (
    exact_weight,
    linear_norm_,
    mean_squares,
    nearest_slots,
    pooled_taps,
    shared_axis,
    take_filters_,
    tap_basis,
)
from leanconv.ops.fold import fold_bn_
from leanconv.ops.gated_sum import gated_sum
from leanconv.registry import register
from leanconv.spec import ConvSpec, PaddingMode, pair

LEAST = 0.85  # how far below the first branch's mean the plain one's may start: gates of .7 and .3
REST_STEPS, LEAST_GATE = 60, 1e-3  # a closed gate divides its branch by no less


@register("splconv")
class SPLConv2d(Operator):
    """The SPLConv layer. Odd kernels, stride 1 or 2 (ours; the paper has 1), padding d·(k - 1)/2.

    `bias` is the plain 1×1's. Stride and `dilation` live in the first depthwise convolution that is there.

    Args: `nn.Conv2d`'s; and
        alpha: share of the input channels that gets the large kernel.
        rate: dilation of the second depthwise convolution (the paper's d).
        dilated_kernel_size: its side e; None means k, ceil(k/rate) is the paper's eq. 7 to the letter.
        depthwise, dilated: False leaves out the first or the second depthwise convolution (the paper's table 2).
    """

    _gated_sum = staticmethod(gated_sum)  # `kernels.training` puts another one into a module
    paper = "Yao et al., SPLConv (Shanghai University)"
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
        alpha: float = 0.5,
        rate: int = 2,
        dilated_kernel_size: int | None = None,
        depthwise: bool = True,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(
            *sizes,
            alpha=alpha,
            rate=rate,
            dilated_kernel_size=dilated_kernel_size,
            depthwise=depthwise,
            dilated=dilated,
        )
        self.alpha, self.rate, self.dilated_kernel_size = alpha, rate, dilated_kernel_size
        self.depthwise, self.dilated = depthwise, dilated
        c, o, factory = split_channels(spec.c, alpha), spec.o, {"device": device, "dtype": dtype}
        self.split = (c, spec.c - c)
        self.stencil1: nn.Module = nn.Identity()
        self.stencil2: nn.Module = nn.Identity()
        if depthwise:
            self.stencil1 = nn.Conv2d(
                c, c, spec.kernel, spec.stride, spec.padding, spec.dilation, c, False, spec.padding_mode, **factory
            )
        if dilated:
            kernel = _dilated_kernel(spec, dilated_kernel_size)
            self.stencil2 = DilatedDepthwise(
                c, kernel, (1, 1) if depthwise else spec.stride, rate, spec.padding_mode, **factory
            )
        self.pointwise = nn.Conv2d(c, o, 1, bias=False, **factory)
        self.norm, self.act = nn.BatchNorm2d(o, **factory), nn.ReLU(inplace=True)
        self.plain = nn.Conv2d(spec.c - c, o, 1, bias=bias, **factory)
        self.pool = average_to_stride(spec.stride)
        kaiming_fan_out_(*(m for m in self.modules() if isinstance(m, nn.Conv2d)))

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        a, b = self.branches(x)
        return self._gated_sum(self.act(self.norm(a)), b)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:  # N C H W -> N O P Q, N O P Q
        """What the norm and the gate read."""
        large, rest = x.split(self.split, 1)  # N C H W -> N c H W, N C-c H W
        if not (self.depthwise or self.dilated):
            large = self.pool(large)
        return self.pointwise(self.stencil2(self.stencil1(large))), self.plain(self.pool(rest))

    def fold(self) -> nn.Module:
        """BatchNorm goes into the 1×1 before it; the ReLU and the gate stay."""
        if isinstance(self.norm, nn.Identity):  # folded before
            return self
        folded = deployed(self)
        fold_bn_(folded.pointwise, folded.norm)
        folded.norm = nn.Identity()
        return folded  # type: ignore[no-any-return]

    def composed_weight(self) -> Tensor:
        """The two stencils as one depthwise kernel `c 1 R' S'`, R' = d·(R - 1) + s·rate·(e - 1) + 1 (lemma L4).

        With stride s and padding p + s·⌊rate·(e - 1)/2⌋ it is the chain but for a border ring of ⌈rate·(e - 1)/2⌉
        output pixels, where the second stencil reads zeros and the large kernel real pixels. More taps (49, not 18):
        it saves a launch, no arithmetic. A stencil that is left out counts as one tap of 1.
        """
        one, steps, strides = self.pointwise.weight.new_ones(self.split[0], 1, 1, 1), (1, 1), (1, 1)
        first, second = one, one
        if isinstance(self.stencil1, nn.Conv2d):
            first, steps, strides = self.stencil1.weight, self.dilation, self.stride
        if isinstance(self.stencil2, nn.Conv2d):
            second = self.stencil2.weight
        (r, s), (e, f) = first.shape[2:], second.shape[2:]
        (dr, ds), (gr, gs) = steps, (strides[0] * self.rate, strides[1] * self.rate)
        high, wide = dr * (r - 1) + 1, ds * (s - 1) + 1
        kernel = first.new_zeros(self.split[0], 1, high + gr * (e - 1), wide + gs * (f - 1))
        for i, j in itertools.product(range(e), range(f)):
            taps = kernel[:, :, i * gr : i * gr + high : dr, j * gs : j * gs + wide : ds]
            taps += second[:, :, i : i + 1, j : j + 1] * first
        return kernel

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The nearest linear layer of its kind, its branches divided by the gates' resting point.

        The large kernel starts as the first stencil alone: the second passes its middle tap. Without a gram that linear
        layer is the optimum; with one it is near to it, for filters and 1×1s take turns. The norm starts as the
        identity. Of the first branch the ReLU cuts what is negative; `_rest_` says how far the bias can help.
        """
        target, c = exact_weight(conv), self.split[0]
        pool = pooled_taps(self.kernel_size, self.stride, self.dilation).to(target)
        large, middle = self._reach()
        basis = target.new_zeros(self.in_channels, max(len(large), 1), len(pool))
        basis[:, 0] = pool
        if self.depthwise or self.dilated:
            basis[:c] = large.to(target)
        channels = torch.arange(self.in_channels, device=target.device)
        pointwise, filters, _ = nearest_slots(target, gram, channels, basis)
        branch = torch.zeros_like(target).flatten(2)  # O C R·S
        branch[:, :c] = pointwise[:, :c, None] * (filters[:c, None] @ basis[:c])[:, 0]
        stencils = [m for m in (self.stencil1, self.stencil2) if isinstance(m, nn.Conv2d)]
        if stencils:
            take_filters_(stencils[0].weight, filters[:c].view(c, 1, *stencils[0].kernel_size))
        if len(stencils) == 2:
            stencils[1].weight.zero_()
            stencils[1].weight[(..., *middle)] = 1
        parts = pointwise[:, :c] if stencils else pointwise[:, :c] * filters[:c, 0]
        plain = pointwise[:, c:] * filters[c:, 0]
        self._rest_(conv, parts, plain, mean_squares(branch.flatten(1), gram))
        return True

    def _reach(self) -> tuple[Tensor, tuple[int, int]]:
        """What the first stencil weighs of the dense kernel's taps, `K R·S`, and the tap that the second passes.

        An even second stencil has no middle: it passes the tap before it, and the first stands off by that.
        """
        axes, passed = [], []
        for axis in (0, 1):
            size, steps, stride = self.kernel_size[axis], self.dilation[axis], self.stride[axis]
            offsets, through = [steps * (i - (size - 1) // 2) for i in range(size)], 0
            if isinstance(self.stencil2, nn.Conv2d):
                wide = self.stencil2.kernel_size[axis]
                second = [self.rate * i - self.rate * (wide - 1) // 2 for i in range(wide)]
                through = (wide - 1) // 2
                offsets = [o + stride * second[through] for o in offsets] if self.depthwise else second
            axes.append(shared_axis(offsets, size, steps))
            passed.append(through)
        return tap_basis(axes[0], axes[1], self.kernel_size), (passed[0], passed[1])

    def _rest_(self, conv: nn.Conv2d, pointwise: Tensor, plain: Tensor, squares: Tensor) -> None:
        """Store both branches so that the layer's mean answer and its slopes are right where its inputs are on average.

        The first branch's answers z are taken as normal with mean 0. ReLU(z + β) has a mean A > 0, so with a plain
        branch of mean B the gates rest at g = sigmoid(A - B), 1 - g; each branch is divided by its own. β is what of
        a positive bias stands in the first branch too; B gives the layer the bias's mean, as far as the gate allows:
        the blend's mean is never below A - .278. Without a bias, B = 0.
        """
        bias = torch.zeros_like(squares) if conv.bias is None else conv.bias.double()
        gate, deviation = torch.full_like(squares, 0.5), squares.sqrt().clamp_min(1e-30)
        for _ in range(REST_STEPS):
            wide = deviation / gate
            beta = bias.clamp_min(0).minimum(2 * wide)
            mean = _relu_mean(beta, wide)
            other = torch.zeros_like(mean) if self.plain.bias is None else _partner(mean, bias)
            gate = ((gate + torch.sigmoid(mean - other)) / 2).clamp(LEAST_GATE, 1 - LEAST_GATE)
        self.pointwise.weight.copy_((pointwise / gate[:, None])[..., None, None])
        self.plain.weight.copy_((plain / (1 - gate)[:, None])[..., None, None])
        linear_norm_(self.norm, wide.square(), 1.0, beta)
        if self.plain.bias is not None:
            self.plain.bias.copy_(other)

    @classmethod
    def cost(
        cls,
        spec: ConvSpec,
        *,
        alpha: float = 0.5,
        rate: int = 2,
        dilated_kernel_size: int | None = None,
        depthwise: bool = True,
        dilated: bool = True,
    ) -> Cost:
        kernel = _dilated_kernel(spec, dilated_kernel_size)
        taps = spec.kernel[0] * spec.kernel[1] * depthwise + kernel[0] * kernel[1] * dilated
        weights = split_channels(spec.c, alpha) * taps + spec.c * spec.o
        return Cost.of(
            spec, macs=spec.n * spec.p * spec.q * weights, params=weights + spec.o * spec.bias, norm_params=2 * spec.o
        )

    @classmethod
    def why_not(
        cls,
        spec: ConvSpec,
        *,
        alpha: float = 0.5,
        rate: int = 2,
        dilated_kernel_size: int | None = None,
        depthwise: bool = True,
        dilated: bool = True,
    ) -> str | None:
        reason = super().why_not(spec) or needs_odd_centred(spec) or needs_stride_1_or_2(spec)
        if reason := reason or why_not_split(spec.c, alpha):
            return reason
        for option, value in {"rate": rate, "dilated_kernel_size": dilated_kernel_size}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                return f"{option}={value!r} must be a whole number of at least 1"
        if spec.dilation != (1, 1) and not depthwise:
            return f"dilation={spec.dilation} lives in the first depthwise convolution; it needs depthwise=True"
        return None


class DilatedDepthwise(nn.Conv2d):
    """A depthwise convolution with "same" padding d·(e - 1); where that is odd the larger half is right and below."""

    def __init__(
        self,
        channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        rate: int,
        padding_mode: PaddingMode,
        **factory: Any,
    ) -> None:
        totals = rate * (kernel[0] - 1), rate * (kernel[1] - 1)
        even = not (totals[0] % 2 or totals[1] % 2)
        padding = (totals[0] // 2, totals[1] // 2) if even else (0, 0)
        super().__init__(channels, channels, kernel, stride, padding, rate, channels, False, padding_mode, **factory)
        # left, right, top, bottom, as F.pad takes them
        self.uneven = None if even else [side for t in reversed(totals) for side in (t // 2, t - t // 2)]

    def forward(self, x: Tensor) -> Tensor:
        if self.uneven is not None:
            x = F.pad(x, self.uneven, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
            return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)
        return super().forward(x)


def _dilated_kernel(spec: ConvSpec, dilated_kernel_size: int | None) -> tuple[int, int]:
    return spec.kernel if dilated_kernel_size is None else pair(dilated_kernel_size)


def _relu_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of ReLU(z) for normal z."""
    t = mean / deviation
    return mean * torch.special.ndtr(t) + deviation * torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)


def _partner(mean: Tensor, wanted: Tensor) -> Tensor:
    """The mean B of the other branch with which the softmax-pair blend of A and B has the mean that is wanted.

    With u = A - B the blend is A - u · sigmoid(-u), which rises with B for u below 1.278. Found by bisection; where
    `wanted` is out of reach, B is `LEAST` below A, short of the lowest blend, so that no gate closes.
    """
    low, high = mean - LEAST, torch.maximum(mean, wanted) + 1
    for _ in range(60):
        middle = (low + high) / 2
        u = mean - middle
        above = mean - u * torch.sigmoid(-u) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low
