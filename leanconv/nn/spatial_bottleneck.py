"""Spatial bottleneck: a strided depthwise convolution, the 1×1 at 1/r² of the pixels, a depthwise deconvolution back.

    u = DW_rxr(x; stride r)        v = PW(u)        y = DW-transposed_rxr(v; stride r) [+ x]

MACs N·⌈H/r⌉·⌈W/r⌉·(r²·C + C·O + r²·O), against N·H·W·O·C·R·S. Sizes that r does not divide: zeros to the right and
below, the result cropped. With `overlap` the kernels are 2r - 1 wide on the way down and 2r on the way up.
Nothing non-linear stands inside, and yet no single kernel does the same: the layer repeats every r pixels.
Source: Wang, Liu, Foroosh 2016, arXiv:1608.04337 (convolution, projection, deconvolution); kernel = stride is ours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator
from leanconv.ops.fold import scale_bias_
from leanconv.registry import register
from leanconv.spec import ConvSpec, centred


@register("spatial_bottleneck")
class SpatialBottleneckConv2d(Operator):
    """A spatial bottleneck in place of a layer that keeps its size; `bias` is the deconvolution's.

    `kernel_size` and `padding` only say which layer it replaces: the taps follow from `ratio`.

    Args: `nn.Conv2d`'s; and
        ratio: r.
        overlap: kernels that reach into the neighbours; needs an even r.
        residual: add the input where C = O.
    """

    paper = "Wang et al. 2016, arXiv:1608.04337"
    accepts = frozenset()

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
        ratio: int = 2,
        overlap: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, ratio=ratio, overlap=overlap, residual=residual)
        self.ratio, self.overlap, self.residual = ratio, overlap, residual
        self._adds = residual and spec.c == spec.o
        self._beyond = 0 if overlap else ratio - 1  # zeros that complete any last r×r; the wide kernels bring their own
        (down, up), c, o, factory = _kernels(ratio, overlap), spec.c, spec.o, {"device": device, "dtype": dtype}
        self.down = nn.Conv2d(c, c, down, ratio, down // 2 if overlap else 0, groups=c, bias=False, **factory)
        self.pointwise = nn.Conv2d(c, o, 1, bias=False, **factory)
        self.up = nn.ConvTranspose2d(o, o, up, ratio, (up - ratio) // 2, groups=o, bias=bias, **factory)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """Normal, each with its own fan-in (an output of `up` sees (kernel / r)² taps); ReLU gain on the 1×1."""
        taps = self.down.weight[0].numel()
        self.down.weight.normal_(0.0, taps**-0.5)
        self.pointwise.weight.normal_(0.0, (2 / self.in_channels) ** 0.5)
        self.up.weight.normal_(0.0, self.ratio / self.up.kernel_size[0])
        if self.up.bias is not None:
            self.up.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O H W
        h, w, r = x.shape[-2], x.shape[-1], self.ratio
        # Of sizes that a program being exported, or traced, leaves open nothing is asked.
        uneven = any(not isinstance(size, int) or size % r for size in (h, w))
        whole = F.pad(x, (0, self._beyond, 0, self._beyond)) if uneven and self._beyond else x
        y = self.up(self.pointwise(self.down(whole)))
        if uneven:
            # A slice of an open size would have an exported program ask whether that is the whole.
            y = F.pad(y, (0, w - (w + r - 1) // r * r, 0, h - (h + r - 1) // r * r))
        return y + x.to(y.dtype) if self._adds else y  # under autocast x may be wider

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        if self._adds:  # the input has no weights
            return False
        weight = self.up.weight  # O 1 r r
        weight.copy_(weight.double() * scale.double().view(-1, 1, 1, 1))
        scale_bias_(self.up, scale, shift, weight)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, ratio: int = 2, overlap: bool = False, residual: bool = False) -> Cost:
        down, up = _kernels(ratio, overlap)
        weights = spec.c * down**2 + spec.c * spec.o + spec.o * up**2
        pixels = spec.n * -(-spec.h // ratio) * -(-spec.w // ratio)
        return Cost.of(spec, pixels * weights, weights + spec.o * spec.bias)

    @classmethod
    def why_not(cls, spec: ConvSpec, *, ratio: int = 2, overlap: bool = False, residual: bool = False) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if spec.padding not in ("same", centred(spec.kernel)):
            return (
                f"padding={spec.padding} changes the size of the map; type padding={centred(spec.kernel) or 'same'!r}"
            )
        if not isinstance(ratio, int) or ratio < 1:
            return f"ratio={ratio!r} must be a whole number of at least 1"
        if overlap and ratio % 2:
            return f"ratio={ratio} is odd; overlap=True needs an even one"
        return None


def _kernels(ratio: int, overlap: bool) -> tuple[int, int]:
    """The sides of the kernels on the way down and up."""
    return (2 * ratio - 1, 2 * ratio) if overlap else (ratio, ratio)
