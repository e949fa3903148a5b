"""Spatial bottleneck: a strided depthwise convolution, the 1×1 at 1/r² of the pixels, a depthwise deconvolution back.

    u = DW_rxr(x; stride r)        v = PW(u)        y = DW-transposed_rxr(v; stride r) [+ x]

MACs N·⌈H/r⌉·⌈W/r⌉·(r²·C + C·O + r²·O), against N·H·W·O·C·R·S. Sizes that r does not divide: zeros to the right and
below, the result cropped. With `overlap` the kernels are 2r - 1 wide on the way down and 2r on the way up.
Nothing non-linear stands inside, and yet no single kernel does the same: the layer repeats every r pixels.
Source: Wang, Liu, Foroosh 2016, arXiv:1608.04337 (convolution, projection, deconvolution); kernel = stride is ours.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import exact_weight, take_bias_
from leanconv.ops.fold import scale_bias_
from leanconv.ops.least_squares import SWEEPS, TOLERANCE, nearer
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

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Near to the dense layer over all places of the r×r raster: kernels and 1×1 take turns in least squares.

        They start from averages and repetition. What the kernel sees outside of the raster's own cells is out of reach.
        Of a gram only the channels' mean squares are used, since it does not know pixels further apart.
        """
        weight, (r, s) = exact_weight(conv), self.kernel_size
        if self._adds:
            weight.diagonal(dim1=0, dim2=1)[(r - 1) // 2, (s - 1) // 2] -= 1
        scales = torch.ones_like(weight[0, :, 0, 0])
        if gram is not None:
            scales = gram[0].diagonal().view(self.in_channels, -1).mean(1)
        rows, columns = (
            _phases(self.ratio, self.down.kernel_size[0], self.up.kernel_size[0], size).to(weight) for size in (r, s)
        )
        down, point, up = _factors(weight, scales, rows, columns)
        self.down.weight.copy_(down.view_as(self.down.weight))
        self.pointwise.weight.copy_(point[..., None, None])
        self.up.weight.copy_(up.view_as(self.up.weight))
        take_bias_(self.up.bias, conv)
        return True

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


def _phases(ratio: int, down: int, up: int, taps: int) -> Tensor:
    """Along one axis, which tap on the way up and which on the way down join an output to an input: `r U D offsets`.

    An output stands at one of r places of its cell. The offset from it to the input is counted from that of the dense
    kernel's first tap; the first `taps` of the offsets are the dense kernel's, the others follow.
    """
    found: dict[tuple[int, int, int], int] = {}
    places = {(taps - 1) // 2 * -1 + i: i for i in range(taps)}
    before_up, before_down = (up - ratio) // 2, down // 2 if down > ratio else 0
    for place, t, k in itertools.product(range(ratio), range(up), range(down)):
        cell, left = divmod(place + before_up - t, ratio)
        if left == 0:
            offset = cell * ratio - before_down + k - place
            found[place, t, k] = places.setdefault(offset, len(places))
    joins = torch.zeros(ratio, up, down, len(places), dtype=torch.double, device="cpu")
    for index, offset in found.items():
        joins[(*index, offset)] = 1
    return joins


def _factors(weight: Tensor, scales: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`C D²`, `O C` and `O U²`, whose product is near to `weight` at all r² places; channels count by `scales`."""
    o, c, r, s = weight.shape
    pairs = [torch.einsum("atkd,auld->tkul", axis, axis) for axis in (rows, columns)]
    q = torch.einsum("tkul,TKUL->tTkKuUlL", *pairs)
    q = q.flatten(6).flatten(4, 5).flatten(2, 3).flatten(0, 1)  # U² D² U² D²
    sums = torch.einsum("tkd,TKD->tTkKdD", rows.sum(0)[..., :r], columns.sum(0)[..., :s])
    sums = sums.flatten(4).flatten(2, 3).flatten(0, 1)  # U² D² R·S
    taps = weight.flatten(2)
    up, down = weight.new_ones(o, len(q)), weight.new_ones(c, q.shape[1])
    point, gain = weight.new_zeros(o, c), 0.0
    for _ in range(SWEEPS):
        through = torch.einsum("tkul,ot,ou->okl", q, up, up)
        pull = torch.einsum("ocd,okd->ock", taps, torch.einsum("ot,tkd->okd", up, sums))
        energy = torch.einsum("okl,ck,cl->oc", through, down, down)
        point = torch.einsum("ock,ck->oc", pull, down) / energy.clamp_min(1e-30)
        normal = torch.einsum("oc,okl->ckl", point.square(), through)
        down = nearer(down, normal, torch.einsum("oc,ock->ck", point, pull))
        down = down * (down.shape[1] ** 0.5 / down.norm(dim=1, keepdim=True).clamp_min(1e-30))
        back = torch.einsum("tkul,ck,cl->ctu", q, down, down)
        pull = torch.einsum("ocd,ctd->oct", taps, torch.einsum("ck,tkd->ctd", down, sums))
        energy = torch.einsum("ctu,ot,ou->oc", back, up, up)
        point = torch.einsum("oct,ot->oc", pull, up) / energy.clamp_min(1e-30)
        normal = torch.einsum("oc,ctu->otu", point.square() * scales, back)
        up = nearer(up, normal, torch.einsum("oc,oct->ot", point * scales, pull))
        energy, cross = torch.einsum("ctu,ot,ou->oc", back, up, up), torch.einsum("oct,ot->oc", pull, up)
        point = cross / energy.clamp_min(1e-30)
        before, gain = gain, float((point * cross * scales).sum())
        share = up.norm(dim=1, keepdim=True).clamp_min(1e-30) / up.shape[1] ** 0.5
        up, point = up / share, point * share
        if gain - before <= TOLERANCE * gain:
            break
    return down, point, up
