"""GMConv: every kernel under a concentric Gaussian whose width is learned, or predicted from the input.

    m(σ)[i,j] = exp(-ρ / 2σ²),  ρ = (i - (R-1)/2)² + (j - (S-1)/2)²          no 1/2πσ²: the centre tap is 1
    static    y    = conv2d(x, w · m(σ))
    dynamic   y[n] = conv2d(x[n], w · m(σ(x[n]))) = Σ_ρ exp(-ρ / 2σ(x[n])²) · conv2d(x[n], w at the taps of ρ)
              σ(x) = softplus(W2 · relu(W1 · mean_hw(x) + b1) + b2 + z0)

MACs of the plain convolution, N·P·Q·O·(C/G)·R·S: the rings of equal ρ partition the taps, and each runs as the small
dilated convolutions its taps form. Dynamic adds N·(C·h + h·units), h = max(4, C // 16). The static form folds to a
plain convolution. σ² is s² + 1e-6 for the stored s; dilation does not scale ρ. For large σ the gradient of σ vanishes
like σ⁻³: give `s` its own learning rate.
Source: Chen et al. 2023, arXiv:2302.04544 (its idea; parametrisation, start and predictor are ours).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost, dense_cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import take_bias_
from leanconv.ops.exact import exact, exact_mean
from leanconv.ops.fold import scale_conv_
from leanconv.ops.padded import conv2d, pad, sides
from leanconv.registry import register
from leanconv.spec import ConvSpec

FLOOR = 1e-6  # keeps σ² off zero
UNITS = {"layer": lambda c, o: 1, "out": lambda c, o: o, "in": lambda c, o: c}


@register("gmconv")
class GMConv2d(Operator):
    """GMConv; all of Conv2d's arguments. Loads a dense layer's `weight` and `bias` as they are, σ keeps its value.

    Parameters: `weight`, `bias`; static: `s`; dynamic: the two linear maps `down` and `up`, `up` zero at the start.

    Args: `nn.Conv2d`'s; and
        mode: "static" (σ learned) or "dynamic" (σ predicted, one per sample).
        sigma: σ at the start, in taps; 5 is nearly plain (3×3 mask 1, .98, .96).
        granularity: one σ per "layer", per "out" or per "in" channel.
    """

    paper = "Chen et al. 2023, arXiv:2302.04544"
    accepts = frozenset({"stride", "dilation", "groups", "padding_mode"})
    replaces = frozenset({"dense", "depthwise", "pointwise", "grouped"})

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
        mode: str = "static",
        sigma: float = 5.0,
        granularity: str = "layer",
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, mode=mode, sigma=sigma, granularity=granularity)
        self.mode, self.sigma, self.granularity = mode, sigma, granularity
        plain, factory = spec.conv(device=device, dtype=dtype), {"device": device, "dtype": dtype}
        self.weight, self.bias = plain.weight, plain.bias  # Conv2d's own start
        units = UNITS[granularity](spec.c, spec.o)
        if mode == "static":
            self.s = nn.Parameter(torch.full((units,), float(sigma), **factory))
        else:
            hidden = _hidden(spec)
            self.down, self.up = nn.Linear(spec.c, hidden, **factory), nn.Linear(hidden, units, **factory)
            self._start_dynamic()

    @torch.no_grad()
    def _start_dynamic(self) -> None:
        """Every sample's σ is `sigma`, whatever the input."""
        self.up.weight.zero_()
        self.up.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        if self.mode == "dynamic":
            return self._rings(x)
        weight = self.weight * self._mask(self.s)
        return conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)

    def _mask(self, sigma: Tensor) -> Tensor:
        """The mask that multiplies the weight: `1`, `O` or `C` of σ -> broadcastable to `O C/G R S`."""
        variance = exact(sigma).square() + FLOOR
        rho = _rho(self.kernel_size, variance)
        mask = torch.exp(-rho / (2 * variance[:, None, None]))  # units R S
        if self.granularity == "in":  # every filter of a group sees the group's own channels
            mask = mask.unflatten(0, (self.groups, 1, -1))  # G 1 C/G R S
            mask = mask.expand(-1, self.out_channels // self.groups, -1, -1, -1).flatten(0, 1)
        else:
            mask = mask.unsqueeze(1)
        return mask.to(self.weight.dtype)

    def sigmas(self, x: Tensor) -> Tensor:
        """The dynamic form's σ for each sample of `N C H W`: `N units`, float32 for half types."""
        z = self.up(F.relu(self.down(exact_mean(x).to(x.dtype))))
        return F.softplus(exact(z) + _inverse_softplus(self.sigma))

    def _rings(self, x: Tensor) -> Tensor:
        (r, s), (sh, sw), (dh, dw) = self.kernel_size, self.stride, self.dilation
        variance = self.sigmas(x).square() + FLOOR  # N units
        x = pad(x, sides(self.kernel_size, self.padding, self.dilation), self.padding_mode)
        p, q = (x.shape[-2] - dh * (r - 1) - 1) // sh + 1, (x.shape[-1] - dw * (s - 1) - 1) // sw + 1
        y: Tensor | None = None
        for rho, corners in _ring_corners(self.kernel_size).items():
            factor = torch.exp(-rho / (2 * variance))[..., None, None]  # N units 1 1
            ring: Tensor | None = None
            for i, j in corners:
                # The taps (±a, ±b) are a convolution of their own: 1 or 2 wide, its dilation their distance.
                high, wide = max(1, r - 1 - 2 * i), max(1, s - 1 - 2 * j)
                weight = self.weight[:, :, i : r - i : high, j : s - j : wide]
                rows, columns = (p - 1) * sh + dh * (r - 1 - 2 * i) + 1, (q - 1) * sw + dw * (s - 1 - 2 * j) + 1
                part = x[..., i * dh : i * dh + rows, j * dw : j * dw + columns]
                if self.granularity == "in":
                    part = part * factor.to(part.dtype)
                z = F.conv2d(part, weight, None, self.stride, 0, (dh * high, dw * wide), self.groups)
                ring = z if ring is None else ring + z
            assert ring is not None  # a ring has at least one tap
            ring = ring if self.granularity == "in" else ring * factor.to(ring.dtype)
            y = ring if y is None else y + ring
        assert y is not None
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    def dense_weight(self) -> Tensor | None:  # O C/G R S
        return self.weight * self._mask(self.s) if self.mode == "static" else None

    def fold(self) -> nn.Module:
        """Static: the plain convolution with the masked kernel. Dynamic: itself."""
        weight = self.dense_weight()
        if weight is None:
            return self
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
        with torch.no_grad():
            plain.weight.copy_(weight)
            if self.bias is not None and plain.bias is not None:
                plain.bias.copy_(self.bias)
        return plain.eval()

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Exact: w = dense / m(σ). Dynamic: the predictor goes back to its start, where σ is `sigma` everywhere.

        False where the mask of a small σ is so near zero that the quotient overflows.
        """
        units = UNITS[self.granularity](self.in_channels, self.out_channels)
        sigma = self.s if self.mode == "static" else conv.weight.new_full((units,), self.sigma)
        weight = conv.weight / self._mask(sigma).to(conv.weight)
        if not bool(torch.isfinite(weight).all()):
            return False
        self.weight.copy_(weight)
        if self.mode == "dynamic":
            self._start_dynamic()
        take_bias_(self.bias, conv)
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A dense layer's state has no σ: ours stays. A state with some of our own keys must have them all."""
        own = {key: value for key, value in self.state_dict().items() if key not in ("weight", "bias")}
        if prefix + "weight" in state_dict and not any(prefix + key in state_dict for key in own):
            state_dict.update({prefix + key: value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        scale_conv_(self, scale, shift)  # type: ignore[arg-type]  # it has Conv2d's weight and bias
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, mode: str = "static", sigma: float = 5.0, granularity: str = "layer") -> Cost:
        plain, units = dense_cost(spec), UNITS[granularity](spec.c, spec.o)
        if mode == "static":
            return Cost.of(spec, plain.macs, plain.params + units)
        hidden = _hidden(spec)
        weights = spec.c * hidden + hidden * units
        return Cost.of(spec, plain.macs + spec.n * weights, plain.params + weights + hidden + units)

    @classmethod
    def why_not(
        cls, spec: ConvSpec, *, mode: str = "static", sigma: float = 5.0, granularity: str = "layer"
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if mode not in ("static", "dynamic"):
            return f"mode={mode!r}: 'static' or 'dynamic'"
        if granularity not in UNITS:
            return f"granularity={granularity!r}: 'layer', 'out' or 'in'"
        if not 0 < sigma < math.inf:
            return f"sigma={sigma!r} must be above 0"
        return None


def _hidden(spec: ConvSpec) -> int:
    return max(4, spec.c // 16)


def _rho(kernel: tuple[int, int], like: Tensor) -> Tensor:
    """Squared distance of each tap from the kernel's centre, in taps: `R S`; even sides have half taps."""
    rows, columns = (torch.arange(k, device=like.device, dtype=like.dtype) - (k - 1) / 2 for k in kernel)
    return rows.square()[:, None] + columns.square()


def _ring_corners(kernel: tuple[int, int]) -> dict[float, list[tuple[int, int]]]:
    """The upper left taps (i, j) of the symmetric sets (±a, ±b), by their ρ = a² + b², the centre first."""
    rings: dict[float, list[tuple[int, int]]] = {}
    for i in range((kernel[0] + 1) // 2):
        for j in range((kernel[1] + 1) // 2):
            rho = (i - (kernel[0] - 1) / 2) ** 2 + (j - (kernel[1] - 1) / 2) ** 2
            rings.setdefault(rho, []).append((i, j))
    return dict(sorted(rings.items()))


def _inverse_softplus(y: float) -> float:
    return y + math.log(-math.expm1(-y))
