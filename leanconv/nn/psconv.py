"""PSConv: every (filter, input channel) pair has its own dilation, so that one layer of dense cost mixes scales.

    y[o] = Σ_i conv2d(x[i]; w[o,i], dilation D(o,i), padding of the same centre)
    block        out-block a, in-block b of `parts` contiguous blocks:
                 D = d if b = a;  2d if b = (a + parts/2) mod parts;  1 otherwise        d = `base_dilation`
    interleaved  the same with a, b = o mod parts, i mod parts: for parts = 4, D = (d, 1, 2d, 1)[(i - o) mod 4]

MACs N·P·Q·O·(C/G)·R·S, those of the dense layer: three group convolutions, one for each rate. The rate-1 pairs are a
group convolution with parts/2 groups: filters of blocks a and a + parts/2 read the same other blocks. (The authors'
code stores and multiplies 1.5 times that: a dense convolution with a masked half.) In a grouped layer each group does
the same with its own channels (the authors' mask is right only where groups = parts; this is the intended operator).
Source: Li, Yao, Chen 2020, arXiv:2007.06191; the authors' `psconv.py` (block layout, parts = 4, d = 2).
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost, dense_cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import nearest_taps, take_bias_
from leanconv.ops.channels import take
from leanconv.ops.fold import scale_bias_
from leanconv.registry import register
from leanconv.spec import ConvSpec


@register("psconv")
class PSConv2d(Operator):
    """PSConv; odd kernels, any stride, padding and groups. `padding` is rate 1's: all rates share the centre.

    Parameters: `gwconv.weight` (rate d), `gwconv_shift.weight` (2d), `conv.weight` (1), live kernels only, and `bias`.
    The authors' state dict loads: the live half of its dense `conv.weight` is taken, its three biases are added.

    Args: `nn.Conv2d`'s; and
        parts: length t of the cycle; even, divides C/G and O/G. With 2 no pair has rate 1.
        base_dilation: d.
        layout: "block" (the authors' code) or "interleaved" (the paper's text): equal up to a permutation of channels.
    """

    paper = "Li et al. 2020, arXiv:2007.06191"
    accepts = frozenset({"stride", "groups"})
    _order: Tensor
    _order_shift: Tensor
    _order_rest: Tensor
    _filters: Tensor
    _filters_rest: Tensor
    _back: Tensor
    _back_rest: Tensor

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
        parts: int = 4,
        base_dilation: int = 2,
        layout: str = "block",
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, parts=parts, base_dilation=base_dilation, layout=layout)
        self.parts, self.base_dilation, self.layout = parts, base_dilation, layout
        factory, half = {"device": device, "dtype": dtype}, parts // 2

        def part(channels: int, groups: int, rate: int) -> nn.Conv2d:
            # An odd kernel's padding is a pair; every rate reaches (rate - 1)·(k - 1)/2 further out than rate 1.
            (r, s), (ph, pw) = spec.kernel, cast(tuple[int, int], spec.padding)
            padding = ph + (rate - 1) * (r // 2), pw + (rate - 1) * (s // 2)
            return nn.Conv2d(channels, spec.o, spec.kernel, spec.stride, padding, rate, groups, False, **factory)

        self.gwconv = part(spec.c, groups * parts, base_dilation)
        self.gwconv_shift = part(spec.c, groups * parts, 2 * base_dilation)
        # With parts > 4 a block is read by several pairs of filter blocks, and stands in the input as often.
        self.conv = part(spec.c // parts * (parts - 2) * half, groups * half, 1) if half > 1 else None
        self.bias = nn.Parameter(torch.empty(spec.o, **factory)) if bias else None
        for name, order in self._orders(spec).items():
            self._constant(name, order, device)
        self._plain_order = layout == "block"
        self._reset()

    def _orders(self, spec: ConvSpec) -> dict[str, Tensor]:
        """Which input channel (`_order*`) and which filter (`_filters*`) stands where in the group convolutions."""
        parts, half = self.parts, self.parts // 2

        def channels(count: int, blocks: list[int]) -> Tensor:
            index = torch.arange(count, device="cpu").unflatten(0, (self.groups, -1))  # G C/G
            if self.layout == "block":
                index = index.unflatten(1, (parts, -1))  # G parts size
            else:
                index = index.unflatten(1, (-1, parts)).transpose(1, 2)
            return index[:, blocks].flatten()

        straight = list(range(parts))
        others = [b for a in range(half) for b in straight if b not in (a, a + half)]
        pairs = [b for a in range(half) for b in (a, a + half)]
        filters, rest = channels(spec.o, straight), channels(spec.o, pairs)
        return {
            "_order": channels(spec.c, straight),
            "_order_shift": channels(spec.c, straight[half:] + straight[:half]),
            "_order_rest": channels(spec.c, others),
            "_filters": filters,
            "_filters_rest": rest,
            "_back": filters.argsort(),
            "_back_rest": rest.argsort(),
        }

    @torch.no_grad()
    def _reset(self) -> None:
        """Conv2d's own start, with the fan of the dense layer for every rate."""
        bound = 1 / math.sqrt(self.in_channels // self.groups * math.prod(self.kernel_size))
        for conv, _, _ in self._parts():
            conv.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def _parts(self) -> list[tuple[nn.Conv2d, Tensor, Tensor]]:
        """Each group convolution with its channels' and its filters' places."""
        parts = [(self.gwconv, self._order, self._filters), (self.gwconv_shift, self._order_shift, self._filters)]
        return parts if self.conv is None else [*parts, (self.conv, self._order_rest, self._filters_rest)]

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        bias = self.bias if self.bias is None or self._plain_order else self.bias[self._filters]
        first = self.gwconv
        y = F.conv2d(
            x if self._plain_order else take(x, self._order),
            first.weight,
            bias,
            first.stride,
            first.padding,
            first.dilation,
            first.groups,
        )
        y = y + self.gwconv_shift(take(x, self._order_shift))
        if not self._plain_order:
            y = take(y, self._back)
        if self.conv is None:
            return y
        rest = self.conv(take(x, self._order_rest))
        return y + take(rest, self._back_rest)

    def _pairs(self, conv: nn.Conv2d, order: Tensor, filters: Tensor) -> Tensor:
        """For each stored kernel its place in the flat `O·(C/G)` plane of the dense layer: `O width`."""
        width, rows = conv.weight.shape[1], torch.arange(self.out_channels, device=filters.device)
        group = rows // (self.out_channels // conv.groups)
        channel = order.view(conv.groups, width)[group] % (self.in_channels // self.groups)
        return filters[:, None] * (self.in_channels // self.groups) + channel

    def dense_weight(self) -> Tensor:
        """The zero-stuffed kernel, `O C/G R' S'` with R' = 2d·(R - 1) + 1."""
        (r, s), reach = self.kernel_size, 2 * self.base_dilation
        side = reach * (r - 1) + 1, reach * (s - 1) + 1
        dense = self.gwconv.weight.new_zeros(self.out_channels * (self.in_channels // self.groups), *side)
        for conv, order, filters in self._parts():
            (dr, ds), pairs = conv.dilation, self._pairs(conv, order, filters).flatten()
            top, left = (side[0] - dr * (r - 1)) // 2, (side[1] - ds * (s - 1)) // 2
            stuffed = dense.new_zeros(len(pairs), *side)
            stuffed[:, top : side[0] - top : dr, left : side[1] - left : ds] = conv.weight.flatten(0, 1)
            dense = dense.index_copy(0, pairs, stuffed)
        return dense.unflatten(0, (self.out_channels, -1))

    @torch.no_grad()
    def load_dense_(self, weight: Tensor) -> None:
        """Take each pair's R×S taps from a kernel `O C/G R S`, and dilate them: the usual way to reuse trained taps."""
        for conv, order, filters in self._parts():
            conv.weight.copy_(weight.flatten(0, 1)[self._pairs(conv, order, filters)])

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The nearest PSConv: of each pair the taps that its rate shares with the dense kernel; optimal.

        Of a dilated pair of 3×3 that is the centre. Taps outside of the dense kernel start at zero.
        """
        width, (r, s) = self.in_channels // self.groups, self.kernel_size
        live = torch.zeros(self.out_channels * width, r, s, dtype=torch.bool, device=conv.weight.device)
        parts = [(conv, self._pairs(conv, order, filters)) for conv, order, filters in self._parts()]
        for part, pairs in parts:
            for _, place in _shared_taps(part):
                live[(pairs.flatten(), *place)] = True
        kernel = nearest_taps(conv, gram, live.view_as(conv.weight)).flatten(0, 1)
        for part, pairs in parts:
            part.weight.zero_()
            for tap, place in _shared_taps(part):
                part.weight[(slice(None), slice(None), *tap)] = kernel[(pairs, *place)].to(part.weight)
        take_bias_(self.bias, conv)
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        dense = state_dict.get(prefix + "conv.weight")
        width = self.in_channels // self.groups
        if dense is not None and dense.shape[1:2] == (width,) and len(dense) == self.out_channels:
            state_dict.pop(prefix + "conv.weight")  # with its masked half
            if self.conv is not None:
                pairs = self._pairs(self.conv, self._order_rest, self._filters_rest).to(dense.device)
                state_dict[prefix + "conv.weight"] = dense.flatten(0, 1)[pairs]
        keys = [prefix + key for key in ("gwconv.bias", "gwconv_shift.bias", "conv.bias")]
        biases = [state_dict.pop(key) for key in keys if key in state_dict]
        if biases:
            state_dict[prefix + "bias"] = torch.stack(biases).sum(0)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        for conv, _, filters in self._parts():
            conv.weight.copy_(conv.weight.double() * scale.double()[filters].view(-1, 1, 1, 1))
        scale_bias_(self, scale, shift, self.gwconv.weight)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, parts: int = 4, base_dilation: int = 2, layout: str = "block") -> Cost:
        return dense_cost(spec)

    @classmethod
    def why_not(cls, spec: ConvSpec, *, parts: int = 4, base_dilation: int = 2, layout: str = "block") -> str | None:
        if reason := super().why_not(spec):
            return reason
        if spec.kernel[0] % 2 == 0 or spec.kernel[1] % 2 == 0:
            return f"kernel_size={spec.kernel} is even; it needs an odd kernel_size"
        if layout not in ("block", "interleaved"):
            return f"layout={layout!r}: 'block' or 'interleaved'"
        if not isinstance(base_dilation, int) or base_dilation < 1:
            return f"base_dilation={base_dilation!r} must be a whole number of at least 1"
        if not isinstance(parts, int) or parts < 2 or parts % 2:
            return f"parts={parts!r} must be even: a block and the one half a cycle away share a rate"
        if (spec.c // spec.groups) % parts or (spec.o // spec.groups) % parts:
            each = " of each group" if spec.groups > 1 else ""
            return (
                f"parts={parts} does not divide in_channels={spec.c // spec.groups} and "
                f"out_channels={spec.o // spec.groups}{each}; type an even common divisor"
            )
        return None

    @classmethod
    def why_keep(cls, spec: ConvSpec) -> str | None:
        return None if spec.kernel == (3, 3) else f"kernel_size={spec.kernel}; the paper replaces 3x3"


def _shared_taps(part: nn.Conv2d) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The taps of a dilated part that lie on a tap of the dense kernel of rate 1, and that tap."""
    axes: list[list[tuple[int, int]]] = []
    for size, rate in zip(part.kernel_size, part.dilation, strict=True):
        places = [(i, size // 2 + rate * (i - size // 2)) for i in range(size)]
        axes.append([(i, place) for i, place in places if 0 <= place < size])
    return [((i, j), (y, x)) for i, y in axes[0] for j, x in axes[1]]
