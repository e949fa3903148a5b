"""HetConv: in every filter each P-th input channel gets a k×k kernel, all others a 1×1.

    y[n,o] = Σ_{c: (c - o) mod P = 0} conv_kxk(x[n,c]; w[o,c]) + Σ_{other c} w[o,c] · x[n,c at the kernel's centre]

MACs N·P·Q·O·C·(R·S/P + 1 - 1/P) for P = `part`: a third of the dense layer's for 3×3 and P = 4. Executed as a group
convolution with P groups plus one full 1×1 whose P diagonal blocks are zero (O·C·(R·S/P + 1) MACs per pixel); where P
does not divide the channels (`ragged=True`), as a masked dense convolution.
Source: Singh et al. 2019, arXiv:1903.04120.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import nearest_taps, take_bias_
from leanconv.ops.channels import deal
from leanconv.ops.fold import with_diagonal
from leanconv.ops.padded import pad
from leanconv.registry import register
from leanconv.spec import ConvSpec, centred


@register("hetconv")
class HetConv2d(Operator):
    """HetConv as one layer. Odd kernels, any stride, padding and dilation; loads a dense layer's `weight`.

    Parameters: `spatial`, the k×k kernels `O C/P R S`, and `pointwise`, the live 1×1 entries `O C-C/P`, both with each
    filter's input channels in ascending order (flat `live R S` and `dead` where ragged); `bias`.

    Args: `nn.Conv2d`'s; and
        part: P; every P-th channel of a filter is spatial. Divides `in_channels` and `out_channels`.
        arrangement: "shifted" (the paper: filter o starts at channel o mod P) or "blocked" (filters and channels in P
            contiguous blocks: the same family of functions without the two channel shuffles).
        ragged: allow a P that does not divide the channels; then executed as a masked dense convolution.
    """

    paper = "Singh et al. 2019, arXiv:1903.04120"
    accepts = frozenset({"stride", "dilation", "padding_mode"})
    _owned: Tensor
    _others: Tensor

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
        part: int = 4,
        arrangement: str = "shifted",
        ragged: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, part=part, arrangement=arrangement, ragged=ragged)
        self.part, self.arrangement, self.ragged = part, arrangement, ragged
        self.grouped = _divides(spec, part)
        owner = owners(spec.o, spec.c, part, arrangement)  # O C, on the CPU: "meta" knows no indices
        owned, others = owner.flatten().nonzero()[:, 0], (~owner).flatten().nonzero()[:, 0]
        # Where each stored number stands in the flat O·C plane of the dense kernel.
        self._constant("_owned", owned, device)
        self._constant("_others", others, device)
        factory, (r, s) = {"device": device, "dtype": dtype}, spec.kernel
        lead = (spec.o, spec.c // part) if self.grouped else (len(owned),)
        self.spatial = nn.Parameter(torch.empty(*lead, r, s, **factory))
        rest = (spec.o, spec.c - spec.c // part) if self.grouped else (len(others),)
        # P = 1 is the dense layer: no 1×1 entry is left, and an empty parameter would never get a gradient.
        self.pointwise = nn.Parameter(torch.empty(*rest, **factory)) if part > 1 else None
        self.bias = nn.Parameter(torch.zeros(spec.o, **factory)) if bias else None
        self._reset(owner.sum(1))

    @torch.no_grad()
    def _reset(self, owned_per_filter: Tensor) -> None:
        """Normal with std sqrt(2 / fan_in), fan_in = a filter's live taps (ours; the paper is silent)."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        fan_in = owned_per_filter * taps + (self.in_channels - owned_per_filter)
        std = (2.0 / fan_in).sqrt().repeat_interleave(self.in_channels).to(self.spatial)  # (O C)
        self.spatial.normal_().mul_(std[self._owned].view(*self.spatial.shape[:-2], 1, 1))
        if self.pointwise is not None:
            self.pointwise.normal_().mul_(std[self._others].view_as(self.pointwise))

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        """The layer's work; `kernels.training` puts another one into a module."""
        if not self.grouped:
            return self._conv(x, self.dense_weight(), self.bias, 1)
        spatial, shuffle = self.spatial, self.arrangement == "shifted" and self.part > 1
        if shuffle:
            spatial = spatial.unflatten(0, (-1, self.part)).transpose(0, 1).flatten(0, 1)  # (O/P P) -> (P O/P)
        if shuffle:
            y = self._dealt(x, spatial)
        else:
            y = self._conv(x, spatial, self.bias if self.part == 1 else None, self.part)
        if self.pointwise is None:
            return y
        y = deal(y, self.out_channels // self.part) if shuffle else y
        return y + F.conv2d(self._centre(x), self._full_pointwise(self.pointwise), self.bias, self.stride)

    def _dealt(self, x: Tensor, spatial: Tensor) -> Tensor:
        """The group convolution of channels that are dealt out to its groups."""
        return self._conv(deal(x, self.part), spatial, None, self.part)

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = self._padded(x), (0, 0)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, groups)

    def _padded(self, x: Tensor) -> Tensor:
        ph, pw = self.padding
        return pad(x, [pw, pw, ph, ph], self.padding_mode)

    def _centre(self, x: Tensor) -> Tensor:
        """The pixels under the kernel's centre: crop or pad by p - d·(k - 1)/2 so that the 1×1 samples them."""
        middle = centred(self.kernel_size, self.dilation) or (0, 0)
        if self.padding == middle:
            return x
        if self.padding_mode != "zeros":
            x, h, w = self._padded(x), -middle[0], -middle[1]
        else:
            h, w = self.padding[0] - middle[0], self.padding[1] - middle[1]
        return F.pad(x, (w, w, h, h))

    def _full_pointwise(self, pointwise: Tensor) -> Tensor:  # O C 1 1, zero where a k×k kernel stands
        p = self.part
        if not torch.compiler.is_exporting():  # one pass, where `with_diagonal` takes three
            flat = pointwise.new_zeros(self.out_channels * self.in_channels)
            flat = flat.scatter(0, self._others, pointwise.flatten())
            return flat.view(self.out_channels, self.in_channels, 1, 1)
        if self.arrangement == "shifted":  # channel k·P + j of filter i·P + r: zero where j = r
            live = pointwise.view(self.out_channels // p, p, -1, p - 1).transpose(1, 2)
            full = with_diagonal(live).transpose(1, 2)
        else:  # channel j·C/P + k of filter r·O/P + i, likewise
            live = pointwise.view(p, self.out_channels // p, p - 1, -1).permute(1, 3, 0, 2)
            full = with_diagonal(live).permute(2, 0, 3, 1)
        return full.reshape(self.out_channels, self.in_channels, 1, 1)

    def dense_weight(self) -> Tensor:  # O C R S
        (r, s), pairs = self.kernel_size, self.out_channels * self.in_channels
        centre = r // 2 * s + s // 2
        dense = self.spatial.new_zeros(pairs, r * s)
        dense = dense.index_copy(0, self._owned, self.spatial.reshape(-1, r * s))
        if self.pointwise is not None:
            column = dense[:, centre].scatter(0, self._others, self.pointwise.flatten())
            dense = torch.cat([dense[:, :centre], column[:, None], dense[:, centre + 1 :]], 1)
        return dense.view(self.out_channels, self.in_channels, r, s)

    @torch.no_grad()
    def load_dense_(self, weight: Tensor) -> None:
        """Take the live taps of a dense kernel `O C R S`: the nearest HetConv in the least-squares sense."""
        taps = weight.reshape(-1, *self.kernel_size).to(self.spatial)
        r, s = self.kernel_size
        self.spatial.copy_(taps[self._owned].view_as(self.spatial))
        if self.pointwise is not None:
            self.pointwise.copy_(taps[self._others, r // 2, s // 2].view_as(self.pointwise))

    @torch.no_grad()
    def load_sum_(self, spatial: nn.Conv2d, pointwise: nn.Conv2d) -> None:
        """Become the sum of a group convolution with P groups and a full 1×1, exactly (blocked; lemma L6)."""
        r, s = self.kernel_size
        centre = pointwise.weight.flatten()[self._owned].view(self.spatial.shape[:-2])
        self.spatial.copy_(spatial.weight)
        self.spatial[..., r // 2, s // 2] += centre
        if self.pointwise is not None:
            self.pointwise.copy_(pointwise.weight.flatten()[self._others].view_as(self.pointwise))
        if self.bias is not None:
            parts = [c.bias for c in (spatial, pointwise) if c.bias is not None]
            self.bias.copy_(sum(parts, torch.zeros_like(self.bias)))

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The nearest HetConv: for each filter the best numbers at its live taps. Optimal, with a gram and without."""
        self.load_dense_(nearest_taps(conv, gram, self._live()))
        take_bias_(self.bias, conv)
        return True

    def _live(self) -> Tensor:
        """The taps that the layer has: bool `O C R S`."""
        r, s = self.kernel_size
        live = torch.zeros(self.out_channels * self.in_channels, r, s, dtype=torch.bool, device=self._owned.device)
        live[:, r // 2, s // 2] = True
        live[self._owned] = True
        return live.view(self.out_channels, self.in_channels, r, s)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        dense = state_dict.get(prefix + "weight")
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        if dense is not None and prefix + "spatial" not in state_dict and tuple(dense.shape) == shape:
            taps = state_dict.pop(prefix + "weight").reshape(-1, *self.kernel_size)
            r, s = self.kernel_size
            owned, others = self._owned.to(taps.device), self._others.to(taps.device)
            state_dict[prefix + "spatial"] = taps[owned].view_as(self.spatial)
            if self.pointwise is not None:
                state_dict[prefix + "pointwise"] = taps[others, r // 2, s // 2].view_as(self.pointwise)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        per_pair = scale.double().repeat_interleave(self.in_channels)  # (O C)
        spatial = self.spatial.double() * per_pair[self._owned].view(*self.spatial.shape[:-2], 1, 1)
        bias = (0.0 if self.bias is None else self.bias.double() * scale.double()) + shift.double()
        self.spatial.copy_(spatial)
        if self.pointwise is not None:
            self.pointwise.copy_(self.pointwise.double() * per_pair[self._others].view_as(self.pointwise))
        if self.bias is None:
            self.bias = nn.Parameter(bias.to(self.spatial), requires_grad=self.spatial.requires_grad)
        else:
            self.bias.copy_(bias)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, part: int = 4, arrangement: str = "shifted", ragged: bool = False) -> Cost:
        taps, pixels = spec.kernel[0] * spec.kernel[1], spec.n * spec.p * spec.q
        if _divides(spec, part):
            owned = spec.o * spec.c // part
            executed = owned * taps + (spec.o * spec.c if part > 1 else 0)
        else:
            owned = int(owners(spec.o, spec.c, part, arrangement).sum())
            executed = spec.o * spec.c * taps
        weights = owned * taps + spec.o * spec.c - owned
        return Cost.of(
            spec, macs=pixels * weights, params=weights + spec.o * spec.bias, executed_macs=pixels * executed
        )

    @classmethod
    def why_not(
        cls, spec: ConvSpec, *, part: int = 4, arrangement: str = "shifted", ragged: bool = False
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if spec.kernel[0] % 2 == 0 or spec.kernel[1] % 2 == 0:
            return f"kernel_size={spec.kernel} is even; it needs an odd kernel_size"
        if arrangement not in ("shifted", "blocked"):
            return f"arrangement={arrangement!r}: 'shifted' or 'blocked'"
        if not isinstance(part, int) or not 1 <= part <= min(spec.c, spec.o):
            return f"part={part!r} must lie between 1 and min(in_channels, out_channels)={min(spec.c, spec.o)}"
        if not _divides(spec, part):
            if not ragged:
                return (
                    f"part={part} does not divide in_channels={spec.c} and out_channels={spec.o}; "
                    "type a common divisor, or ragged=True (no speed gain)"
                )
            if arrangement == "blocked":
                return f"arrangement='blocked' needs part={part} to divide the channels; type arrangement='shifted'"
        return None


def owners(o: int, c: int, part: int, arrangement: str) -> Tensor:
    """Which (filter, channel) pairs carry a k×k kernel: bool `O C`."""
    filters, channels = torch.arange(o, device="cpu")[:, None], torch.arange(c, device="cpu")[None]
    if arrangement == "blocked":
        return filters // (o // part) == channels // (c // part)
    return (channels - filters) % part == 0


def _divides(spec: ConvSpec, part: int) -> bool:
    return spec.c % part == 0 and spec.o % part == 0
