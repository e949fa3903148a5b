"""Topological subdivisioning: channels lie in a grid, and each output channel sees a small window of the input grid.

    input dims D (product C), output dims E (product O), window c; channels are numbered row by row, last dim fastest
    y[j] = Σ_{0 <= q_i < c_i} w[j,q] · t[((j_i·D_i) // E_i + q_i) mod D_i for each axis i]
    t = DW_RxS(x) for R·S > 1, x itself for a 1×1 layer

MACs N·P·Q·(C·R·S + O·Πc), against N·P·Q·O·C·R·S. Executed as a gather of the windows and one group convolution, a
group for every distinct window: exactly these MACs, and Π(windows)·Πc gathered channels of traffic. L such layers with
E = D connect every channel with every other iff L >= max_i ⌈(D_i - 1)/(c_i - 1)⌉.
Source: Wang, Liu, Foroosh 2016, arXiv:1608.04337. Wrap-around, one-sided windows and the rule for E ≠ D are ours.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, kaiming_fan_out_
from leanconv.nn.starts import exact_weight, nearest_pair, nearest_taps, take_bias_, take_filters_
from leanconv.ops.channels import take
from leanconv.ops.fold import scale_bias_, then_pointwise, ungroup
from leanconv.ops.padded import conv2d
from leanconv.registry import register
from leanconv.spec import ConvSpec

Dims = tuple[int, ...]


@register("topological")
class TopologicalConv2d(Operator):
    """A depthwise convolution (for k > 1) and a projection in which each output sees a window of the channel grid.

    Parameters: `spatial.weight` (k > 1), `weight` `O Πc` with the window's channels row by row, `bias`.

    Args: `nn.Conv2d`'s; and
        in_dims, out_dims: D and E, of one length; None: the most nearly equal factors (of the other's length, or 2).
        window: c, 1 <= c_i <= D_i; None: half of each D_i, at least 2 (1 where D_i is 1).
    """

    paper = "Wang et al. 2016, arXiv:1608.04337"
    accepts = frozenset({"stride", "dilation", "padding_mode"})
    replaces = frozenset({"dense", "pointwise"})
    _gather: Tensor
    _order: Tensor
    _back: Tensor
    _inputs: Tensor

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
        in_dims: Dims | None = None,
        out_dims: Dims | None = None,
        window: Dims | None = None,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, in_dims=in_dims, out_dims=out_dims, window=window)
        self.in_dims, self.out_dims, self.window = in_dims, out_dims, window
        self.grids = d, e, c = _grids(spec, in_dims, out_dims, window)
        factory, reach = {"device": device, "dtype": dtype}, math.prod(c)
        self.spatial = None
        if spec.kernel != (1, 1):
            self.spatial = nn.Conv2d(
                spec.c,
                spec.c,
                spec.kernel,
                spec.stride,
                spec.padding,
                spec.dilation,
                spec.c,
                False,
                spec.padding_mode,
                **factory,
            )
            kaiming_fan_out_(self.spatial)
        self.weight = nn.Parameter(torch.empty(spec.o, reach, **factory))
        nn.init.normal_(self.weight, 0.0, math.sqrt(2 / reach))  # fan-in: the window
        self.bias = nn.Parameter(torch.zeros(spec.o, **factory)) if bias else None
        windows = seen_channels(d, e, c)  # O Πc, on the CPU: "meta" knows no indices
        # Outputs with one window stand together: the channels of each distinct window, and where its outputs come from.
        share = [b // a if b % a == 0 else 1 for a, b in zip(d, e, strict=True)]
        order = _grouped_order(e, share)
        self.distinct = spec.o // math.prod(share)
        gather = windows[order].view(self.distinct, -1, reach)[:, 0]
        for name, index in {
            "_inputs": windows,
            "_gather": gather.flatten(),
            "_order": order,
            "_back": order.argsort(),
        }.items():
            self._constant(name, index, device)
        self._is_sorted = bool((order == torch.arange(spec.o, device="cpu")).all())

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        if self.spatial is not None:
            return self._project(self.spatial(x), (1, 1), (0, 0))
        if self.padding == (0, 0) and self.stride != (1, 1):  # a 1×1 layer: gather only the pixels it reads
            return self._project(x[..., :: self.stride[0], :: self.stride[1]], (1, 1), (0, 0))
        return self._project(x, self.stride, self.padding)

    def _project(self, x: Tensor, stride: tuple[int, int], padding: Any) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not self._is_sorted:
            weight, bias = self.weight[self._order], None if self.bias is None else self.bias[self._order]
        windows = take(x, self._gather)  # N C H W -> N (distinct Πc) H W
        mode = self.padding_mode if padding != (0, 0) else "zeros"
        y = conv2d(windows, weight[..., None, None], bias, stride, padding, (1, 1), self.distinct, mode)
        return y if self._is_sorted else take(y, self._back)

    def projection(self) -> Tensor:
        """The projection as a plain 1×1 kernel with zeros, `O C 1 1`."""
        dense = self.weight.new_zeros(self.out_channels, self.in_channels)
        return dense.scatter(1, self._inputs, self.weight)[..., None, None]

    def dense_weight(self) -> Tensor:  # O C R S
        if self.spatial is None:
            return self.projection()
        return then_pointwise(ungroup(self.spatial.weight, self.in_channels), self.projection())

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """1×1: the best live entries of each output, optimal. k×k: per channel the best filter for those that see it.

        Without a gram that is the nearest layer. With one, filters and projection take turns from there.
        """
        sees = torch.zeros(self.out_channels, self.in_channels, dtype=torch.bool, device=conv.weight.device)
        sees.scatter_(1, self._inputs, True)
        if self.spatial is None:
            whole = nearest_taps(conv, gram, sees[..., None, None])[..., 0, 0]
        else:
            whole, filters = nearest_pair(exact_weight(conv), gram, self.in_channels, 1, sees)
            take_filters_(self.spatial.weight, filters)
        self.weight.copy_(whole.gather(1, self._inputs))
        take_bias_(self.bias, conv)
        return True

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        self.weight.copy_(self.weight.double() * scale.double()[:, None])
        scale_bias_(self, scale, shift, self.weight)
        return True

    @classmethod
    def cost(
        cls, spec: ConvSpec, *, in_dims: Dims | None = None, out_dims: Dims | None = None, window: Dims | None = None
    ) -> Cost:
        taps = math.prod(spec.kernel)
        weights = spec.o * math.prod(_grids(spec, in_dims, out_dims, window)[2]) + (spec.c * taps if taps > 1 else 0)
        return Cost.of(spec, spec.n * spec.p * spec.q * weights, weights + spec.o * spec.bias)

    @classmethod
    def why_not(
        cls, spec: ConvSpec, *, in_dims: Dims | None = None, out_dims: Dims | None = None, window: Dims | None = None
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        for option, value in {"in_dims": in_dims, "out_dims": out_dims, "window": window}.items():
            if value is not None and not (
                isinstance(value, tuple | list) and value and all(isinstance(v, int) and v > 0 for v in value)
            ):
                return f"{option}={value!r}: whole numbers of at least 1, such as (4, 4), or None"
        d, e, c = _grids(spec, in_dims, out_dims, window)
        if math.prod(d) != spec.c:
            return f"in_dims={d} has {math.prod(d)} places for in_channels={spec.c}"
        if math.prod(e) != spec.o:
            return f"out_dims={e} has {math.prod(e)} places for out_channels={spec.o}"
        if not len(d) == len(e) == len(c):
            return f"in_dims={d}, out_dims={e} and window={c} must have one length"
        if any(a > b for a, b in zip(c, d, strict=True)):
            return f"window={c} is larger than in_dims={d}"
        return None


def _grids(spec: ConvSpec, in_dims: Any, out_dims: Any, window: Any) -> tuple[Dims, Dims, Dims]:
    """D, E and c, with what was left out filled in."""
    rank = next((len(dims) for dims in (in_dims, out_dims, window) if dims), 2)
    d = tuple(in_dims) if in_dims else nearly_equal_factors(spec.c, rank)
    e = tuple(out_dims) if out_dims else nearly_equal_factors(spec.o, rank)
    return d, e, tuple(window) if window else tuple(min(size, max(2, size // 2)) for size in d)


def nearly_equal_factors(number: int, rank: int) -> Dims:
    """The `rank` factors with the smallest sum, ascending: 64 -> (8, 8), 128 -> (8, 16), 7 -> (1, 7)."""
    if rank == 1:
        return (number,)
    first = [f for f in range(1, round(number ** (1 / rank)) + 2) if number % f == 0]
    found = [(f, *nearly_equal_factors(number // f, rank - 1)) for f in first]
    return min((f for f in found if f == tuple(sorted(f))), key=sum)


def seen_channels(d: Dims, e: Dims, c: Dims) -> Tensor:
    """For each output channel the input channels of its window, row by row: `O Πc`."""
    per_axis = []
    for size, outs, width in zip(d, e, c, strict=True):
        start = torch.arange(outs, device="cpu") * size // outs
        per_axis.append((start[:, None] + torch.arange(width, device="cpu")) % size)  # E_i c_i
    rows = []
    for j in itertools.product(*(range(outs) for outs in e)):
        index = torch.zeros(1, dtype=torch.long, device="cpu")
        for axis, at in enumerate(j):
            index = (index[:, None] * d[axis] + per_axis[axis][at]).flatten()
        rows.append(index)
    return torch.stack(rows)


def _grouped_order(e: Dims, share: list[int]) -> Tensor:
    """The output channels sorted so that those with one window stand together: axis i as (windows, share_i)."""
    split = [part for outs, s in zip(e, share, strict=True) for part in (outs // s, s)]
    index = torch.arange(math.prod(e), device="cpu").view(split)
    axes = range(len(e))
    return index.permute([2 * i for i in axes] + [2 * i + 1 for i in axes]).flatten()
