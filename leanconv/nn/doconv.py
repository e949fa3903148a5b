"""DO-Conv: every kernel composed with an extra linear map of its taps while training; deployed as a plain convolution.

    w[o,c,t] = Σ_s (D + I)[c', t, s] · W[o,c,s]          t over the R·S taps, c' = (o // (O/G)) · (C/G) + c
    y = conv2d(x, w)

W: `O C/G S` and D: `C R·S S` with S = `multiplier` (default R·S); I is the identity tiled along S, the remainder zero.
D starts at zero, so at S = R·S the layer starts as the plain convolution W; weight decay pulls D + I to the identity.
MACs of the plain convolution, N·P·Q·O·(C/G)·R·S; composing runs C·(O/G)·R·S·S more per forward, whatever the batch.
Source: Cao et al. 2022, arXiv:2006.12030, kernel composition; the authors' `do_conv_pytorch_1_10.py`. That file pairs
filter o of a grouped layer with the D of input group o mod G: `compat="reference"` does the same, for its weights.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost, dense_cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import take_bias_
from leanconv.ops.fold import scale_bias_
from leanconv.ops.padded import conv2d
from leanconv.registry import register
from leanconv.spec import ConvSpec


@register("doconv")
class DOConv2d(Operator):
    """DO-Conv by kernel composition; all of Conv2d's arguments. Loads a dense `weight`, and the authors' own keys.

    Parameters: `W`, `D` (a 1×1 layer has none: nothing to compose) and `bias`.

    Args: `nn.Conv2d`'s; and
        multiplier: S, at least R·S; None means R·S. A 1×1 layer ignores it, as the authors' does.
        compat: None (filter o meets the D of its own input group) or "reference" (of group o mod G).
    """

    paper = "Cao et al. 2022, arXiv:2006.12030"
    accepts = frozenset({"stride", "dilation", "groups", "padding_mode"})
    replaces = frozenset({"dense", "depthwise", "grouped"})
    _identity: Tensor

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
        multiplier: int | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, multiplier=multiplier, compat=compat)
        self.multiplier, self.compat = multiplier, compat
        factory, taps, columns = {"device": device, "dtype": dtype}, math.prod(spec.kernel), _columns(spec, multiplier)
        self.W = nn.Parameter(torch.empty(spec.o, spec.c // spec.groups, columns, **factory))
        self.D = nn.Parameter(torch.zeros(spec.c, taps, columns, **factory)) if taps > 1 else None
        identity = torch.eye(taps, device="cpu", dtype=dtype).repeat(1, columns // taps + 1)[:, :columns].clone()
        identity[:, columns - columns % taps :] = 0
        self._constant("_identity", identity, device)  # R·S S
        self.bias = nn.Parameter(torch.empty(spec.o, **factory)) if bias else None
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """Conv2d's own start for the composed kernel: where I has several copies, each slice of W gets its share."""
        bound = 1 / math.sqrt(self.W.shape[1] * math.prod(self.kernel_size))
        self.W.uniform_(-bound, bound).mul_(self._copies() ** -0.5)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def _copies(self) -> int:
        return self._identity.shape[1] // self._identity.shape[0]

    def dense_weight(self) -> Tensor:  # O C/G R S
        if self.D is None:
            return self.W.unsqueeze(-1)
        groups, (o, c, s) = self.groups, self.W.shape
        d = (self.D + self._identity).view(groups, c, -1, s)  # G C/G R·S S
        # (G O/G) C/G S, or the authors' reshape, in which the groups are dealt out like cards
        order, back = ((groups, o // groups), "gcts,gocs->goct")
        if self.compat == "reference":
            order, back = ((o // groups, groups), "gcts,ogcs->ogct")
        weight = torch.einsum(back, d, self.W.view(*order, c, s))
        return weight.reshape(o, c, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        return conv2d(
            x, self.dense_weight(), self.bias, self.stride, self.padding, self.dilation, self.groups, self.padding_mode
        )

    def fold(self) -> nn.Module:
        """The plain convolution with the composed kernel; its keys are Conv2d's."""
        with torch.no_grad():
            weight = self.dense_weight()
            plain = nn.Conv2d(
                self.in_channels,
                self.out_channels,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                self.bias is not None,
                self.padding_mode,
                weight.device,
                weight.dtype,
            )
            plain.weight.copy_(weight)
            if self.bias is not None and plain.bias is not None:
                plain.bias.copy_(self.bias)
        return plain.eval()

    def _from_dense(self, weight: Tensor) -> Tensor:
        """The W that a dense kernel `O C/G R S` becomes at D = 0: each copy of the identity gets an equal share."""
        flat = weight.detach().flatten(2)
        return nn.functional.pad(
            flat.repeat(1, 1, self._copies()) / self._copies(), (0, self.W.shape[2] - flat.shape[2] * self._copies())
        )

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Exact: W takes the dense kernel, D goes back to zero."""
        self.W.copy_(self._from_dense(conv.weight))
        if self.D is not None:
            self.D.zero_()
        take_bias_(self.bias, conv)
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        dense = state_dict.get(prefix + "weight")
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if dense is not None and prefix + "W" not in state_dict and tuple(dense.shape) == shape:
            state_dict[prefix + "W"] = self._from_dense(state_dict.pop(prefix + "weight"))
            if self.D is not None:
                state_dict.setdefault(prefix + "D", torch.zeros_like(self.D))
        for constant in ("D_diag", "d_diag"):  # the authors store I, by two names: up to PyTorch 1.9 and from 1.10 on
            state_dict.pop(prefix + constant, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        self.W.copy_(self.W.double() * scale.double().view(-1, 1, 1))
        scale_bias_(self, scale, shift, self.W)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, multiplier: int | None = None, compat: str | None = None) -> Cost:
        taps, columns, plain = math.prod(spec.kernel), _columns(spec, multiplier), dense_cost(spec)
        composing = spec.c * (spec.o // spec.groups) * taps * columns if taps > 1 else 0
        params = spec.o * (spec.c // spec.groups) * columns + (spec.c * taps * columns if taps > 1 else 0)
        return Cost.of(spec, plain.macs, params + spec.o * spec.bias, executed_macs=plain.macs + composing)

    @classmethod
    def why_not(cls, spec: ConvSpec, *, multiplier: int | None = None, compat: str | None = None) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if compat not in (None, "reference"):
            return f"compat={compat!r}: None or 'reference'"
        taps = math.prod(spec.kernel)
        if multiplier is not None and (not isinstance(multiplier, int) or multiplier < taps):
            return f"multiplier={multiplier!r} must be at least the kernel's {taps} taps; type None for that"
        return None

    @classmethod
    def why_keep(cls, spec: ConvSpec) -> str | None:
        return None if max(spec.kernel) > 1 else f"kernel_size={spec.kernel} has nothing to compose"


def _columns(spec: ConvSpec, multiplier: int | None) -> int:
    taps = math.prod(spec.kernel)
    return taps if multiplier is None or taps == 1 else multiplier
