"""Inception depthwise convolution: most channels pass as they are, three small groups get a square and two bands.

    g = floor(ratio · C);   x_id, x_hw, x_w, x_h = split(x, (C - 3g, g, g, g))
    y = cat(x_id, DW_qxq(x_hw), DW_1xb(x_w), DW_bx1(x_h))          q = `square`, b = `band`, each with "same" padding

MACs N·H·W·g·(q² + 2b), against N·H·W·C·R·S. Equals one depthwise convolution with b×b kernels, everywhere.
Source: Yu, Zhou, Yan, Wang 2024, arXiv:2303.16900; the authors' `inceptionnext.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import nearest_taps, shared_axis
from leanconv.ops.fold import pad_taps
from leanconv.registry import register
from leanconv.spec import ConvSpec, centred


@register("inception_dw")
class InceptionDWConv2d(Operator):
    """InceptionNeXt's token mixer in place of a depthwise layer that keeps its size; loads the authors' weights.

    `kernel_size` and `padding` only say which layer it replaces: the taps are `square` and `band`. `bias` is one number
    for each of the 3g convolved channels; identity channels have neither weight nor bias, whatever is projected.

    Args: `nn.Conv2d`'s; and
        square: side q of the square kernels, odd.
        band: length b of the bands, odd; may exceed the map.
        ratio: share g/C of each of the three groups, at most 1/3.
    """

    paper = "Yu et al. 2024, arXiv:2303.16900"
    accepts = frozenset({"groups"})
    replaces = frozenset({"depthwise"})

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
        square: int = 3,
        band: int = 11,
        ratio: float = 0.125,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, square=square, band=band, ratio=ratio)
        self.square, self.band, self.ratio = square, band, ratio
        g = _branch(spec, ratio)
        self.split = (spec.c - 3 * g, g, g, g)

        def depthwise(kernel: tuple[int, int]) -> nn.Conv2d:
            padding = (kernel[0] // 2, kernel[1] // 2)
            return nn.Conv2d(g, g, kernel, 1, padding, groups=g, bias=bias, device=device, dtype=dtype)

        self.dwconv_hw = depthwise((square, square))
        self.dwconv_w = depthwise((1, band))
        self.dwconv_h = depthwise((band, 1))
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """ConvNeXt's start: truncated normal with std .02, biases zero."""
        for conv in (self.dwconv_hw, self.dwconv_w, self.dwconv_h):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N C H W
        same, hw, w, h = x.split(self.split, 1)
        branches = [self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h)]
        return torch.cat([same.to(branches[0].dtype), *branches], 1)  # under autocast x may be wider

    def dense_weight(self) -> Tensor:
        """The one depthwise kernel it equals: `C 1 B B` with B the larger of `square` and `band`."""
        side = max(self.square, self.band)
        kernels = [pad_taps(c.weight, (side, side)) for c in (self.dwconv_hw, self.dwconv_w, self.dwconv_h)]
        delta = kernels[0].new_zeros(self.split[0], 1, side, side)
        delta[..., side // 2, side // 2] = 1
        return torch.cat([delta, *kernels])

    def as_depthwise(self) -> nn.Conv2d:
        """The plain depthwise layer with the same outputs; it multiplies more, and many runtimes know it better."""
        weight, conv = self.dense_weight(), self.dwconv_hw
        side, biased = weight.shape[-1], conv.bias is not None
        plain = nn.Conv2d(
            self.in_channels,
            self.in_channels,
            side,
            1,
            side // 2,
            groups=self.groups,
            bias=biased,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            plain.weight.copy_(weight)
            if plain.bias is not None:
                biases = [c.bias for c in (self.dwconv_hw, self.dwconv_w, self.dwconv_h) if c.bias is not None]
                plain.bias.copy_(torch.cat([weight.new_zeros(self.split[0]), *biases]))
        return plain.eval()

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Each of the 3g channels with taps takes the best of its taps that the depthwise kernel has: optimal.

        The identity channels have no weights: they pass their input as it is, whatever the kernel and the bias were.
        """
        branches = (self.dwconv_hw, self.dwconv_w, self.dwconv_h)
        live, shared = torch.zeros_like(conv.weight, dtype=torch.bool), []
        for branch, place in zip(branches, live[self.split[0] :].chunk(3), strict=True):
            axes = [
                shared_axis([i - b // 2 for i in range(b)], k, 1) for b, k in zip(branch.kernel_size, self.kernel_size)
            ]
            shared.append([(i, j, y, x) for i, y in enumerate(axes[0]) for j, x in enumerate(axes[1])])
            shared[-1] = [each for each in shared[-1] if None not in each]
            for _, _, y, x in shared[-1]:
                place[:, :, y, x] = True
        kernels = nearest_taps(conv, gram, live)[self.split[0] :].chunk(3)
        biases = [None] * 3 if conv.bias is None else conv.bias[self.split[0] :].chunk(3)
        for branch, kernel, taps, bias in zip(branches, kernels, shared, biases, strict=True):
            branch.weight.zero_()
            for i, j, y, x in taps:
                branch.weight[:, :, i, j] = kernel[:, :, y, x].to(branch.weight)
            if branch.bias is not None:
                branch.bias.copy_(0.0 * branch.bias if bias is None else bias)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, square: int = 3, band: int = 11, ratio: float = 0.125) -> Cost:
        g = _branch(spec, ratio)
        weights = g * (square * square + 2 * band)
        return Cost.of(spec, spec.n * spec.p * spec.q * weights, weights + 3 * g * spec.bias)

    @classmethod
    def why_not(cls, spec: ConvSpec, *, square: int = 3, band: int = 11, ratio: float = 0.125) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if not spec.groups == spec.c == spec.o:
            return f"groups={spec.groups} is not depthwise; it needs groups=in_channels=out_channels"
        if spec.padding not in ("same", centred(spec.kernel)):
            return (
                f"padding={spec.padding} changes the size of the map; type padding={centred(spec.kernel) or 'same'!r}"
            )
        for option, value in {"square": square, "band": band}.items():
            if not isinstance(value, int) or value < 1 or value % 2 == 0:
                return f"{option}={value!r} must be odd"
        if not 0 < ratio < 1:
            return f"ratio={ratio!r} must lie between 0 and 1"
        if not 1 <= _branch(spec, ratio) <= spec.c // 3:
            return (
                f"ratio={ratio} of {spec.c} channels is {_branch(spec, ratio)} for each branch; "
                f"it must be between 1 and a third, {spec.c // 3}"
            )
        return None


def _branch(spec: ConvSpec, ratio: float) -> int:
    return int(spec.c * ratio)  # as the authors' code has it
