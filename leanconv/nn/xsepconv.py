"""XSepConv: a large depthwise kernel as a 2×2, a 1×S and an R×1 depthwise convolution.

    t = act(norm(DW_2x2(pad(x))))        one row and one column of zeros; on which sides is the padding policy's
    u = act(norm(DW_1xS(t)))             padding (0, S//2), stride along the width
    y = DW_Rx1(u)                        padding (R//2, 0), stride along the height; block=True: act(norm(...))

MACs N·C·(4·H·W + S·H·Q + R·P·Q), against N·C·P·Q·R·S: cheaper from 5×5 on. The 2×2 gives back what a rank-1 kernel
cannot do. Having no centre it moves the picture by half a pixel, so directions alternate: from layer to layer
("layer": the paper's), between four groups of channels ("channel": Wu et al. 2019, arXiv:1903.08385) or not at all.
Source: Chen, Lu, Xue, Liu 2020, arXiv:2002.12046. Norms, activations and stride are ours (the paper's are not known).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, deployed, kaiming_fan_out_, needs_odd_centred
from leanconv.nn.starts import exact_weight, linear_norm_, linear_range, take_bias_
from leanconv.ops.fold import fold_bn_, scale_conv_
from leanconv.ops.least_squares import rank_one
from leanconv.registry import register
from leanconv.spec import ConvSpec

# left, right, top, bottom. The order lets the shift cancel after every pair of layers.
DIRECTIONS = {"RB": (0, 1, 0, 1), "LT": (1, 0, 1, 0), "LB": (1, 0, 0, 1), "RT": (0, 1, 1, 0)}
ACTS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


@register("xsepconv")
class XSepConv2d(Operator):
    """XSepConv in place of a depthwise layer; odd kernels, padding (k - 1)/2, any stride. `bias` is the R×1's.

    Args: `nn.Conv2d`'s; and
        pad_policy: "layer" (direction `layer_index` mod 4 of RB, LT, LB, RT), "channel" (all four, a quarter of the
            channels each, the first C mod 4 groups one more) or "single" (RB always; drifts).
        layer_index: how many XSepConv layers stand before this one; `plan` and the network builders number them.
        linear: leave out every norm and activation in between: the form whose kernels compose.
        norm_between, act_between: BatchNorm, and activation, after the 2×2 and after the 1×S.
        act: "relu", "relu6" or "hardswish".
        block: the whole block: norm and activation after the R×1 too.
    """

    paper = "Chen et al. 2020, arXiv:2002.12046"
    accepts = frozenset({"stride", "groups"})
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
        pad_policy: str = "layer",
        layer_index: int = 0,
        linear: bool = False,
        norm_between: bool = True,
        act_between: bool = True,
        act: str = "relu",
        block: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, pad_policy=pad_policy, layer_index=layer_index, act=act)
        self.pad_policy, self.layer_index, self.linear, self.block = pad_policy, layer_index, linear, block
        self.norm_between, self.act_between, self.act = norm_between, act_between, act
        (r, s), (sh, sw), c, factory = spec.kernel, spec.stride, spec.c, {"device": device, "dtype": dtype}
        self.square = nn.Conv2d(c, c, 2, groups=c, bias=False, **factory)
        self.row = nn.Conv2d(c, c, (1, s), (1, sw), (0, s // 2), groups=c, bias=False, **factory)
        self.column = nn.Conv2d(c, c, (r, 1), (sh, 1), (r // 2, 0), groups=c, bias=bias, **factory)
        has_norm, has_act = norm_between and not linear, act_between and not linear
        norms = [nn.BatchNorm2d(c, **factory) if has else nn.Identity() for has in (has_norm, has_norm, block)]
        self.norm1, self.norm2, self.norm3 = norms
        acts = [ACTS[act]() if has else nn.Identity() for has in (has_act, has_act, block)]
        self.act1, self.act2, self.act3 = acts
        kaiming_fan_out_(self.square, self.row, self.column)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N C P Q
        t = self.act1(self.norm1(self.square(self._pad(x))))  # N C H W
        u = self.act2(self.norm2(self.row(t)))  # N C H Q
        return self.act3(self.norm3(self.column(u)))

    def _pad(self, x: Tensor) -> Tensor:  # N C H W -> N C H+1 W+1
        sizes, directions = self._directions()
        if len(sizes) == 1:
            return F.pad(x, directions[0])
        parts = x.split(sizes, 1)
        return torch.cat([F.pad(parts[i], directions[i]) for i in range(len(sizes))], 1)

    def _directions(self) -> tuple[list[int], list[tuple[int, int, int, int]]]:
        """The sizes of the groups of channels that are padded alike, and how: left, right, top, bottom."""
        directions = list(DIRECTIONS.values())
        if self.pad_policy != "channel":
            index = self.layer_index % 4 if self.pad_policy == "layer" else 0
            return [self.in_channels], [directions[index]]
        sizes = [self.in_channels // 4 + (i < self.in_channels % 4) for i in range(4)]
        sizes = [size for size in sizes if size]  # fewer than four channels: the last groups are empty
        return sizes, directions[: len(sizes)]

    def fold(self) -> nn.Module:
        """Every BatchNorm goes into the convolution before it."""
        if not any(isinstance(m, nn.BatchNorm2d) for m in self.children()):
            return self
        folded = deployed(self)
        for conv, name in ((folded.square, "norm1"), (folded.row, "norm2"), (folded.column, "norm3")):
            if isinstance(getattr(folded, name), nn.BatchNorm2d):
                fold_bn_(conv, getattr(folded, name))
                setattr(folded, name, nn.Identity())
        return folded  # type: ignore[no-any-return]

    def rank_one_weight(self) -> Tensor:
        """The 1×S and the R×1 as one depthwise kernel `C 1 R S`: exact everywhere for the linear form (lemma L5)."""
        return self.column.weight * self.row.weight

    def composed_weight(self) -> Tensor:
        """All three as one depthwise kernel `C 1 R+2 S+2`, padding k//2 + 1 (linear form, lemma L4).

        Of its taps (R+1)×(S+1) are live. Exact but for the first k//2 rows and columns on the two sides opposite to
        those that the 2×2 pads.
        """
        (r, s), c = self.kernel_size, self.in_channels
        sizes, directions = self._directions()
        kernels = []
        for part, (left, _, top, _) in zip(self.square.weight.split(sizes), directions, strict=True):
            kernels.append(F.pad(part, (1 - left, left, 1 - top, top)))  # the 2×2 in a 3×3 with the pixel in its middle
        embedded = torch.cat(kernels).transpose(0, 1)  # 1 C 3 3
        flipped = self.rank_one_weight().flip(2, 3)  # correlating with a mirrored kernel composes the two
        return F.conv2d(F.pad(embedded, (s - 1, s - 1, r - 1, r - 1)), flipped, groups=c).transpose(0, 1)

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The nearest kernel of rank 1, behind a 2×2 that passes the pixel itself.

        Optimal of rank 1 without a gram, near to it with one. Norms start as the identity. With activations between the
        three the rows' sums are positive, for of inputs that are not negative few answers are cut then; hardswish
        starts in the small, where it is linear. A block starts fresh.
        """
        if self.block:
            return False
        column, row = rank_one(exact_weight(conv)[:, 0], gram)
        used = column.any(1, keepdim=True)  # a channel without weight keeps a fresh row behind a zero column, to learn
        fresh = self.row.weight[:, 0, 0].double()
        sign = torch.where(row.sum(1, keepdim=True) < 0, -1.0, 1.0)
        row, column = torch.where(used, row * sign, fresh), column * sign
        scale, _, slope = linear_range(self.act if self.act_between and not self.linear else None, False)
        size = row.norm(dim=1, keepdim=True)
        row, column = row / size / slope, column * size / (scale * slope)
        self.square.weight.zero_()
        sizes, directions = self._directions()
        for part, (left, _, top, _) in zip(self.square.weight.split(sizes), directions, strict=True):
            part[:, 0, top, left] = scale
        self.row.weight.copy_(row[:, None, None])
        self.column.weight.copy_(column[:, None, :, None])
        (r, s), own = self.kernel_size, torch.eye(math.prod(self.kernel_size)).to(row)[None] if gram is None else gram
        middle = own[:, r // 2 * s :, r // 2 * s :][:, :s, :s]  # of the middle line's pixels
        seen = (row[:, None] @ middle @ row[..., None])[:, 0, 0]
        linear_norm_(self.norm1, scale**2 * middle[:, s // 2, s // 2].expand_as(seen))
        linear_norm_(self.norm2, (scale * slope) ** 2 * seen)
        take_bias_(self.column.bias, conv)
        return True

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        if self.block:  # an activation stands last
            return False
        scale_conv_(self.column, scale, shift)
        return True

    @classmethod
    def cost(
        cls,
        spec: ConvSpec,
        *,
        pad_policy: str = "layer",
        layer_index: int = 0,
        linear: bool = False,
        norm_between: bool = True,
        act_between: bool = True,
        act: str = "relu",
        block: bool = False,
    ) -> Cost:
        r, s = spec.kernel
        macs = spec.n * spec.c * (4 * spec.h * spec.w + s * spec.h * spec.q + r * spec.p * spec.q)
        norms = 2 * (norm_between and not linear) + block
        return Cost.of(spec, macs, spec.c * (4 + r + s + spec.bias), norm_params=2 * spec.c * norms)

    @classmethod
    def why_not(
        cls,
        spec: ConvSpec,
        *,
        pad_policy: str = "layer",
        layer_index: int = 0,
        linear: bool = False,
        norm_between: bool = True,
        act_between: bool = True,
        act: str = "relu",
        block: bool = False,
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if not spec.groups == spec.c == spec.o:
            return f"groups={spec.groups} is not depthwise; it needs groups=in_channels=out_channels"
        if reason := needs_odd_centred(spec):
            return reason
        if pad_policy not in ("layer", "channel", "single"):
            return f"pad_policy={pad_policy!r}: 'layer', 'channel' or 'single'"
        if not isinstance(layer_index, int) or layer_index < 0:
            return f"layer_index={layer_index!r} must be a whole number of at least 0"
        return None if act in ACTS else f"act={act!r}: one of {', '.join(map(repr, ACTS))}"

    @classmethod
    def why_keep(cls, spec: ConvSpec) -> str | None:
        least = 5 if spec.stride == (1, 1) else 7
        if min(spec.kernel) < least:
            return f"kernel_size={spec.kernel} at stride {spec.stride} gains nothing; the paper's rule is k >= {least}"
        return None
