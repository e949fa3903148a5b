"""LHC: a convolution that learns which taps of its kernels exist, tile by tile of input × output channels.

    free    M[o,c,r,s] = 1 where E[r, s, c // tile_in, o // tile_out] > 0
    rigid   M[o,c]     = SHAPES[argmax E[:, c // tile_in, o // tile_out]]           3×3 only, first index on ties
    y = conv2d(x, w · M) + bias

Backward is straight through: dE = dM summed over the tile, times 1 where |E| < 1 (rigid: |E - mean over the shapes|),
0.1 elsewhere. `Schedule` drives the training (masks come on over twenty epochs, a density target pulls, then the
scores freeze). Deployed it is a plain convolution of t = M.sum() live weights: t MACs an output pixel, counted at the
target density; what runs here is the masked dense convolution.
Source: Zhao, Wu, Zhang, Neural Networks 2021, arXiv:2301.05440; the authors' `src/layer.py`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost, dense_cost
from leanconv.nn.base import Operator, batch_or_sample, needs_odd_centred
from leanconv.nn.starts import take_bias_
from leanconv.ops.fold import scale_conv_
from leanconv.ops.fx import leaf_function
from leanconv.ops.padded import conv2d, pad
from leanconv.registry import register
from leanconv.spec import ConvSpec, pair

# Empty, centre, four lines, four 2×2 corners, four halves, full: the authors' order, each read row by row.
SHAPES = (
    "000 000 000", "000 010 000", "000 111 000", "001 010 100", "010 010 010", "100 010 001", "011 011 000",
    "110 110 000", "000 110 110", "000 011 011", "111 111 000", "110 110 110", "000 111 111", "011 011 011",
    "111 111 111",
)  # fmt: skip


@register("lhconv")
class LHConv2d(Operator):
    """LHC-f and LHC-r. Loads a dense layer's `weight` and `bias`; every tap is live then, and it is that layer.

    Parameters: `weight` `O C R S`, `scores` (free: `R S C/tile_in O/tile_out`, rigid: `15 C/tile_in O/tile_out`, both
    rounded up; he-normal, so that about half the taps start live), `bias`.
    `enabled` (bool, `O`; set by `Schedule`, not in the state) says whose masks apply while training; in eval all do.

    Args: `nn.Conv2d`'s; and
        shapes: "free" (any taps) or "rigid" (one of fifteen shapes).
        tile_in, tile_out: how many adjacent input and output channels share their taps.
        density: the share of live taps that training aims at, which the MACs are counted for; -1: no aim, dense MACs.
        tf_same: TensorFlow's SAME padding, with a stride the larger half right and below; the authors' own.
    """

    paper = "Zhao et al. 2021, arXiv:2301.05440"
    accepts = frozenset({"stride", "dilation", "padding_mode"})
    enabled: Tensor
    patterns: Tensor

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
        shapes: str = "free",
        tile_in: int = 32,
        tile_out: int = 16,
        density: float = 0.1,
        tf_same: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, shapes=shapes, tile_in=tile_in, tile_out=tile_out, density=density, tf_same=tf_same)
        self.shapes, self.tile_in, self.tile_out = shapes, tile_in, tile_out
        self.density, self.tf_same = density, tf_same
        plain, factory = spec.conv(device=device, dtype=dtype), {"device": device, "dtype": dtype}
        self.weight, self.bias = plain.weight, plain.bias
        sides = _scores(spec, shapes, tile_in, tile_out)
        self.scores = nn.Parameter(torch.empty(sides, **factory))
        self._constant("enabled", torch.ones(spec.o, dtype=torch.bool, device="cpu"), device)
        if shapes == "rigid":
            taps = [[int(tap) for tap in shape if tap != " "] for shape in SHAPES]
            patterns = torch.tensor(taps, device="cpu", dtype=self.weight.dtype)
            self._constant("patterns", patterns.view(-1, 3, 3), device)
        self.output_area = 0  # P·Q of the last training step: what the regulariser weighs this layer with
        with torch.no_grad():
            self.weight.normal_(0.0, math.sqrt(2 / (spec.c * math.prod(spec.kernel))))
            self.scores.normal_(0.0, math.sqrt(2 / math.prod(sides[:-1])))
            if self.bias is not None:
                self.bias.zero_()

    def mask(self) -> Tensor:
        """What multiplies the weight: the learned mask; while training, ones for the filters that are not enabled."""
        return _where_enabled(self.learned_mask(), self.enabled, self.training)

    def learned_mask(self) -> Tensor:
        """M: `O C R S` of 0 and 1, with the straight-through gradient to `scores`."""
        tiles = self._free() if self.shapes == "free" else self._rigid()  # O/tile C/tile R S
        (o, c), (to, ti) = tiles.shape[:2], (self.tile_out, self.tile_in)
        whole = tiles[:, None, :, None].expand(o, to, c, ti, *self.kernel_size)
        return whole.reshape(o * to, c * ti, *self.kernel_size)[: self.out_channels, : self.in_channels]

    def _free(self) -> Tensor:
        live = _straight_through((self.scores > 0).to(self.scores.dtype), self.scores, self.scores.abs() < 1)
        return live.permute(3, 2, 0, 1)

    def _rigid(self) -> Tensor:
        index = torch.arange(len(SHAPES), device=self.scores.device)[:, None, None]
        chosen = (index == self.scores.argmax(0)).to(self.scores.dtype)
        chosen = _straight_through(chosen, self.scores, (self.scores - self.scores.mean(0)).abs() < 1)
        return (chosen[..., None, None] * self.patterns[:, None, None]).sum(0).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        y = _convolve(self, x, self.weight * self.mask())
        # In a trace of torch.export the area is a symbol. torch 2.11 says "exporting" while Dynamo compiles, too.
        traced = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
        if self.training and isinstance(y, Tensor) and not traced:
            self.output_area = y.shape[-2] * y.shape[-1]
        return y

    def dense_weight(self) -> Tensor | None:  # O C R S
        """None where `tf_same` and a stride make the padding one that Conv2d does not have."""
        return None if self.tf_same and self.stride != (1, 1) else self.weight * self.mask()

    def fold(self) -> nn.Module:
        """The plain convolution with the masked kernel; with `tf_same` and a stride, one that pads like TensorFlow."""
        cls = TFSameConv2d if self.tf_same and self.stride != (1, 1) else nn.Conv2d
        plain = cls(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            1,
            self.bias is not None,
            self.padding_mode,
            self.weight.device,
            self.weight.dtype,
        ).eval()
        with torch.no_grad():
            plain.weight.copy_(self.weight * self.learned_mask())
            if self.bias is not None and plain.bias is not None:
                plain.bias.copy_(self.bias)
        return plain

    @torch.no_grad()
    def open_(self) -> None:
        """Make every tap live."""
        if self.shapes == "free":
            self.scores.copy_(self.scores.abs().clamp_min(torch.finfo(self.scores.dtype).tiny))
        else:  # the full shape just ahead of the winner, so that one step can change its mind
            best = self.scores.amax(0)
            self.scores[-1] = best + 0.01 * best.abs().clamp_min(1)

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Exact: the dense weights, every tap live; what training then switches off is its own choice."""
        self.weight.copy_(conv.weight)
        self.open_()
        take_bias_(self.bias, conv)
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "weight" in state_dict and prefix + "scores" not in state_dict:
            self.open_()
            state_dict[prefix + "scores"] = self.scores.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        scale_conv_(self, scale, shift)  # type: ignore[arg-type]  # it has Conv2d's weight and bias
        return True

    @classmethod
    def cost(
        cls,
        spec: ConvSpec,
        *,
        shapes: str = "free",
        tile_in: int = 32,
        tile_out: int = 16,
        density: float = 0.1,
        tf_same: bool = False,
    ) -> Cost:
        plain, taps = dense_cost(spec), spec.o * spec.c * math.prod(spec.kernel)
        live = taps if density == -1 else round(density * taps)
        scores = math.prod(_scores(spec, shapes, tile_in, tile_out))
        return Cost.of(spec, spec.n * spec.p * spec.q * live, plain.params + scores, executed_macs=plain.macs)

    @classmethod
    def why_not(
        cls,
        spec: ConvSpec,
        *,
        shapes: str = "free",
        tile_in: int = 32,
        tile_out: int = 16,
        density: float = 0.1,
        tf_same: bool = False,
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if shapes not in ("free", "rigid"):
            return f"shapes={shapes!r}: 'free' or 'rigid'"
        if shapes == "rigid" and spec.kernel != (3, 3):
            return f"kernel_size={spec.kernel} has no rigid shapes; they are 3x3, or type shapes='free'"
        for option, value in {"tile_in": tile_in, "tile_out": tile_out}.items():
            if not isinstance(value, int) or value < 1:
                return f"{option}={value!r} must be a whole number of at least 1"
        if density != -1 and not 0 < density < 1:
            return f"density={density!r} must lie between 0 and 1, or be -1 for no target"
        if tf_same and spec.padding != "same" and (reason := needs_odd_centred(spec)):
            return f"tf_same=True: {reason}"
        return None


class TFSameConv2d(nn.Conv2d):
    """A plain convolution padded as TensorFlow's SAME does: ceil(H / stride) wide, the larger half right and below."""

    @batch_or_sample
    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        x = _tf_same(x, self.kernel_size, self.stride, self.dilation, self.padding_mode)
        return conv2d(x, self.weight, self.bias, pair(self.stride), (0, 0), pair(self.dilation))


def _convolve(layer: LHConv2d, x: Tensor, weight: Tensor) -> Tensor:
    if not layer.tf_same or layer.stride == (1, 1):  # at stride 1 the two paddings agree
        return conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, 1, layer.padding_mode)
    x = _tf_same(x, layer.kernel_size, layer.stride, layer.dilation, layer.padding_mode)
    return conv2d(x, weight, layer.bias, layer.stride, (0, 0), layer.dilation)


@leaf_function
def _tf_same(x: Tensor, kernel: Any, stride: Any, dilation: Any, mode: str) -> Tensor:
    """`x` with TensorFlow's SAME padding around it."""
    amounts: list[int] = []  # left, right, top, bottom
    for axis in (1, 0):
        size, step, extent = x.shape[2 + axis], stride[axis], dilation[axis] * (kernel[axis] - 1) + 1
        total = max(((size + step - 1) // step - 1) * step + extent - size, 0)
        amounts += [total // 2, total - total // 2]
    return pad(x, amounts, mode)


@leaf_function
def _where_enabled(mask: Tensor, enabled: Tensor, training: bool) -> Tensor:
    """One node in both modes: torchvision's extractors of features compare the nodes of the two."""
    return torch.where(enabled[:, None, None, None], mask, torch.ones_like(mask)) if training else mask


@leaf_function
def _straight_through(hard: Tensor, scores: Tensor, near: Tensor) -> Tensor:
    """`hard` in value; its gradient goes to `scores`, whole where `near`, a tenth elsewhere."""
    if not (torch.is_grad_enabled() and scores.requires_grad) and not torch.jit.is_tracing():
        return hard
    slope = torch.full_like(scores, 0.1).masked_fill(near, 1.0)  # `where` of plain numbers knows float32's 0.1 alone
    return hard + slope * (scores - scores.detach())


def _scores(spec: ConvSpec, shapes: str, tile_in: int, tile_out: int) -> tuple[int, ...]:
    tiles = (math.ceil(spec.c / tile_in), math.ceil(spec.o / tile_out))
    return (*spec.kernel, *tiles) if shapes == "free" else (len(SHAPES), *tiles)
