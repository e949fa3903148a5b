"""FuSeConv: a depthwise k×k taken apart into a row of filters beside a column of filters, then the 1×1.

    a = norm(DW_1xS(x or its first half))      b = norm(DW_Rx1(x or its second half))
    y = PW(act(cat(a, b)))

D = 1 (full: both branches read all C channels) or 2 (half: C/2 each). MACs N·P·Q·((R + S)·C/D + 2C·O/D).
Both branches stride along both axes. A depthwise layer takes the two branches alone: the BatchNorm of its host, per
channel over the concatenation, is the branches' own, so there they have none (and no activation, no 1×1).
Source: Selvam, Ganesan, Kumar, DATE 2021, arXiv:2105.13434; the authors' `models/`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, deployed, kaiming_fan_out_, needs_odd_centred
from leanconv.nn.starts import (
    exact_weight,
    linear_norm_,
    linear_range,
    nearest_slots,
    nearest_taps,
    take_bias_,
    take_filters_,
)
from leanconv.ops.fold import fold_bn_, scale_conv_, then_pointwise, ungroup
from leanconv.registry import register
from leanconv.spec import ConvSpec, centred

ACTS: dict[str, Any] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


@register("fuseconv")
class FuSeConv2d(Operator):
    """FuSeConv. Odd kernels, padding d·(k - 1)/2. Three forms, told apart by `groups` and `out_channels`:

    groups = 1: the branches with their BatchNorms, `act`, the 1×1 (its bias is the output's).
    groups = C = O: `variant="half"`'s branches alone; linear, the bias theirs.
    groups = C, O = 2C: `variant="full"`'s branches alone, for network builders whose 1×1 then reads 2C channels.

    `act` is a module; a builder may put a squeeze-excite before it (MobileNetV3).

    Args: `nn.Conv2d`'s; and
        variant: "half" (even C) or "full".
        act: between the branches and the 1×1: None (MobileNetV1), "relu6" (V2), "relu" (ResNet), "hardswish" (V3).
    """

    paper = "Selvam et al. 2021, arXiv:2105.13434"
    accepts = frozenset({"stride", "dilation", "groups", "padding_mode"})
    replaces = frozenset({"dense", "depthwise"})

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
        variant: str = "half",
        act: str | None = None,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, variant=variant, act=act)
        self.variant, self.act_name = variant, act
        (r, s), (ph, pw) = spec.kernel, centred(spec.kernel, spec.dilation) or (0, 0)
        each, factory = _each(spec, variant), {"device": device, "dtype": dtype}
        self.width, alone = each, spec.groups > 1
        rest = (spec.dilation, each, bias and alone, spec.padding_mode)
        self.row = nn.Conv2d(each, each, (1, s), spec.stride, (0, pw), *rest, **factory)
        self.column = nn.Conv2d(each, each, (r, 1), spec.stride, (ph, 0), *rest, **factory)
        self.norm_row: nn.Module = nn.Identity() if alone else nn.BatchNorm2d(each, **factory)
        self.norm_column: nn.Module = nn.Identity() if alone else nn.BatchNorm2d(each, **factory)
        self.act: nn.Module = ACTS[act](inplace=True) if act else nn.Identity()
        self.pointwise = None if alone else nn.Conv2d(2 * each, spec.o, 1, bias=bias, **factory)
        kaiming_fan_out_(*(m for m in self.modules() if isinstance(m, nn.Conv2d)))

    def options(self) -> dict[str, Any]:
        return {"variant": self.variant, "act": self.act_name}

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        first, second = (x, x) if self.variant == "full" else x.split(self.width, 1)
        branches = [self.norm_row(self.row(first)), self.norm_column(self.column(second))]
        z = self.act(torch.cat(branches, 1))  # N 2·width P Q
        return z if self.pointwise is None else self.pointwise(z)

    def fold(self) -> nn.Module:
        """The BatchNorms go into the one-dimensional convolutions."""
        if not isinstance(self.norm_row, nn.BatchNorm2d):  # none, or folded before
            return self
        folded = deployed(self)
        fold_bn_(folded.row, folded.norm_row)
        fold_bn_(folded.column, folded.norm_column)
        folded.norm_row, folded.norm_column = nn.Identity(), nn.Identity()
        return folded  # type: ignore[no-any-return]

    def dense_weight(self) -> Tensor | None:  # O C/G R S
        """The cross-shaped kernel. None with an activation, in training (the BatchNorms), and for full branches alone.

        The channels of those come in another order than Conv2d's groups.
        """
        branches = self._branches()
        if self.pointwise is None:
            return None if self.variant == "full" else torch.cat(branches)
        if isinstance(self.norm_row, nn.BatchNorm2d):
            return None if self.training else self.fold().dense_weight()  # type: ignore[operator]
        if not isinstance(self.act, nn.Identity):
            return None
        row, column = (ungroup(branch, self.width) for branch in branches)  # width width R S
        if self.variant == "full":
            return then_pointwise(torch.cat([row, column]), self.pointwise.weight)
        ways = self.pointwise.weight.split(self.width, 1)
        return torch.cat([then_pointwise(row, ways[0]), then_pointwise(column, ways[1])], 1)

    def _branches(self) -> tuple[Tensor, Tensor]:
        """The two branches' kernels with zeros around: `width 1 R S` each."""
        (r, s), (row, column) = self.kernel_size, (self.row.weight, self.column.weight)
        wide = nn.functional.pad(row, (0, 0, (r - 1) // 2, (r - 1) // 2))
        return wide, nn.functional.pad(column, ((s - 1) // 2, (s - 1) // 2))

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Of a depthwise kernel the best middle row or column, optimal. Of a dense one the nearest cross-shaped kernel.

        That one is optimal for `variant="half"` without a gram; else rows, columns and the 1×1 take turns. Its norms
        start as the identity, and what stands before an activation in the range where that is linear: exactly so only
        where the 1×1 has a bias to take the shift back, for without one a ReLU starts at its bend. Full branches alone
        start fresh.
        """
        if self.pointwise is not None:
            return self._project_dense(self.pointwise, conv, gram)
        if self.variant == "full":
            return False
        (r, s), half = self.kernel_size, self.width
        live = torch.zeros_like(conv.weight, dtype=torch.bool)
        live[:half, :, r // 2] = True
        live[half:, :, :, s // 2] = True
        kernel = nearest_taps(conv, gram, live)
        self.row.weight.copy_(kernel[:half, :, r // 2 : r // 2 + 1])
        self.column.weight.copy_(kernel[half:, :, :, s // 2 : s // 2 + 1])
        for branch, part in ((self.row, slice(half)), (self.column, slice(half, None))):
            if branch.bias is not None:
                branch.bias.copy_(0.0 * branch.bias if conv.bias is None else conv.bias[part])
        return True

    def _project_dense(self, last: nn.Conv2d, conv: nn.Conv2d, gram: Tensor | None) -> bool:
        (r, s), target = self.kernel_size, exact_weight(conv)
        taps = max(r, s)
        row, column = (target.new_zeros(taps, r, s) for _ in range(2))
        row[range(s), r // 2, range(s)] = 1
        column[range(r), range(r), s // 2] = 1
        basis = torch.stack([row.flatten(1), column.flatten(1)]).repeat_interleave(self.width, 0)
        channels = torch.arange(2 * self.width, device=target.device) % self.in_channels
        pointwise, filters, squares = nearest_slots(target, gram, channels, basis)
        scale, shift, slope = linear_range(self.act_name, last.bias is not None)
        deviation = torch.where(squares > 0, squares, 1.0).sqrt()
        filters, pointwise = filters / deviation[:, None], pointwise * deviation
        take_filters_(self.row.weight, filters[: self.width, None, None, :s])
        take_filters_(self.column.weight, filters[self.width :, None, :r, None])
        for norm in (self.norm_row, self.norm_column):
            linear_norm_(norm, torch.ones_like(deviation[: self.width]), scale, shift)
        pointwise = pointwise / (scale * slope)
        last.weight.copy_(pointwise[..., None, None])
        take_bias_(last.bias, conv)
        if last.bias is not None:
            last.bias.sub_((pointwise * shift).sum(1))
        return True

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        if self.pointwise is not None:
            scale_conv_(self.pointwise, scale, shift)
            return True
        for conv, a, b in zip((self.row, self.column), scale.split(self.width), shift.split(self.width), strict=True):
            scale_conv_(conv, a, b)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, variant: str = "half", act: str | None = None) -> Cost:
        each, alone = _each(spec, variant), spec.groups > 1
        weights = each * sum(spec.kernel) + (0 if alone else 2 * each * spec.o)
        return Cost.of(
            spec,
            macs=spec.n * spec.p * spec.q * weights,
            params=weights + spec.o * spec.bias,
            norm_params=0 if alone else 4 * each,
        )

    @classmethod
    def why_not(cls, spec: ConvSpec, *, variant: str = "half", act: str | None = None) -> str | None:
        if reason := super().why_not(spec) or needs_odd_centred(spec):
            return reason
        if variant not in ("half", "full"):
            return f"variant={variant!r}: 'half' or 'full'"
        if act is not None and act not in ACTS:
            return f"act={act!r}: None, {', '.join(map(repr, ACTS))}"
        if variant == "half" and spec.c % 2:
            return f"in_channels={spec.c} is odd; variant='half' needs an even number, or type variant='full'"
        if spec.groups == 1:
            return None
        if spec.groups != spec.c:
            return f"groups={spec.groups} is not supported; it needs groups=1 or groups=in_channels={spec.c}"
        wanted = spec.c if variant == "half" else 2 * spec.c
        if spec.o != wanted:
            return f"a depthwise layer becomes out_channels={wanted} with variant={variant!r}, not {spec.o}; " + (
                "type variant='half'" if variant == "full" and spec.o == spec.c else "change the layer after it too"
            )
        if act is not None:
            return f"act={act!r} would stand last in a depthwise layer, whose host has its own; type act=None"
        return None


def _each(spec: ConvSpec, variant: str) -> int:
    """Channels of one branch."""
    return spec.c if variant == "full" else spec.c // 2
