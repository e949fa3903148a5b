"""DRConv: every sample's output positions are parted into m regions, and each region has a kernel of its own.

    j*(n,p,q)  = argmax_j G[n,j,p,q]                                   G: guide logits; first index on ties
    y[n,:,p,q] = conv2d(x[n], W_j*(x[n]))[:,p,q] + bias
    routing    W_j(x) = Σ_e a[j,e] · w_e,  a = 2 · sigmoid(FC(mean_hw(x))) / E          E stored experts (released)
    adaptive   W(x)   = PW_m-groups(sigmoid(PW(pool_RxS(x))))                           (the paper's)

Backward takes y for Σ_j softmax(G)_j · y_j where the guide is concerned: dL/dP_j = <dL/dy, y_j>; kernels and input get
their gradient through the chosen region alone.
MACs counted as if each position met its own kernel: N·P·Q·O·C·R·S, plus generator and guide. What runs: routing
convolves the batch with all E experts and mixes the answers, never making a kernel; adaptive with all m kernels.
Source: Chen et al., CVPR 2021, arXiv:2003.12243; the authors' `DRConv.py` and its CUDA backward (routing, whose state
this loads); adaptive after the public `shallowtoil/DRConv-PyTorch`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.errors import BadInput
from leanconv.nn.base import Operator
from leanconv.nn.exact import ExactLinear
from leanconv.nn.starts import take_bias_
from leanconv.ops.exact import conv2d_in_own_type, exact, exact_mean
from leanconv.ops.fold import scale_bias_
from leanconv.ops.fx import leaf_function
from leanconv.ops.layout import like
from leanconv.ops.padded import conv2d
from leanconv.ops.per_sample import per_sample_conv2d
from leanconv.registry import register
from leanconv.spec import ConvSpec


@register("drconv")
class DRConv2d(Operator):
    """DRConv; groups = 1. Call it with `x`, or with `guide=None` as `layer(x, logits)`, logits `N m H' W'` of any size.

    Parameters: routing: `weight` `O·C·R·S E` and `routing_fc`; adaptive: `conv_kernel.1`, `conv_kernel.3`; then
    `conv_guide` (unless `guide=None`) and `bias`, shared by the regions.

    Args: `nn.Conv2d`'s; and
        regions: m.
        generator: "routing" (the released code's: a mixture of experts) or "adaptive" (the paper's).
        guide: "conv" (the paper's: a k×k of the layer's own geometry), "pointwise" (a 1×1 without bias, as the released
            code has one for a block) or None (logits passed in, nearest-resized to the output).
        experts: E of the routing generator.
    """

    paper = "Chen et al. 2021, arXiv:2003.12243"
    accepts = frozenset({"stride", "dilation", "padding_mode"})
    replaces = frozenset({"dense", "pointwise"})

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
        regions: int = 8,
        generator: str = "routing",
        guide: str | None = "conv",
        experts: int = 8,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, regions=regions, generator=generator, guide=guide, experts=experts)
        self.regions, self.generator, self.guide, self.experts = regions, generator, guide, experts
        c, o, factory = spec.c, spec.o, {"device": device, "dtype": dtype}
        if generator == "routing":
            self.weight = nn.Parameter(torch.empty(o * c * math.prod(spec.kernel), experts, **factory))
            self.routing_fc = ExactLinear(c, regions * experts, **factory)
        else:
            self.conv_kernel: Any = nn.Sequential(
                AdaptiveAverage(spec.kernel),
                nn.Conv2d(c, regions**2, 1, **factory),
                nn.Sigmoid(),
                nn.Conv2d(regions**2, regions * o * c, 1, groups=regions, **factory),
            )
        self.conv_guide = None
        if guide == "conv":
            self.conv_guide = nn.Conv2d(
                c, regions, spec.kernel, spec.stride, spec.padding, spec.dilation, 1, True, spec.padding_mode, **factory
            )
        elif guide == "pointwise":
            self.conv_guide = nn.Conv2d(c, regions, 1, bias=False, **factory)
        self.bias = nn.Parameter(torch.zeros(o, **factory)) if bias else None
        self._reset(spec)

    @torch.no_grad()
    def _reset(self, spec: ConvSpec) -> None:
        """Routing as released: every coefficient about 1/E. Adaptive: kernels of the size of Conv2d's own start."""
        fan_in = spec.c * math.prod(spec.kernel)
        if self.generator == "routing":
            bound = math.sqrt(6 / fan_in)
            self.weight.uniform_(-bound, bound)
            self.routing_fc.weight.normal_(0, 0.01)
            self.routing_fc.bias.zero_()
        else:
            last, bound = self.conv_kernel[3], 1 / math.sqrt(fan_in)
            last.weight.uniform_(-bound, bound).mul_(2 / math.sqrt(self.regions))
            last.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor, logits: Tensor | None = None) -> Tensor:  # N C H W -> N O P Q
        logits = self._logits(x, logits)
        y = self._routed(x, logits) if self.generator == "routing" else self._adaptive(x, logits)
        return like(y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None], x)

    def _logits(self, x: Tensor, logits: Tensor | None) -> Tensor:  # N m P Q
        size = self._output_size(x)
        if self.conv_guide is None:
            return nearest(given_logits(logits, self.regions), size)
        if logits is not None:
            x = _alone(x, logits, self.guide)
        guide = self.conv_guide
        # In float32, for of logits with 8 bits many are equal.
        weight, bias = exact(guide.weight), None if guide.bias is None else exact(guide.bias)
        if self.guide == "pointwise":
            return conv2d_in_own_type(nearest(x, size), weight, None)
        geometry = (self.stride, self.padding, self.dilation, 1, self.padding_mode)
        return conv2d_in_own_type(x, weight, bias, *geometry)

    def _output_size(self, x: Tensor) -> tuple[int, int]:
        if self.padding == "same":
            return x.shape[2], x.shape[3]
        geometry: Any = zip((2, 3), self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        p, q = ((x.shape[dim] + 2 * int(pad) - d * (k - 1) - 1) // s + 1 for dim, pad, d, k, s in geometry)
        return p, q

    def _routed(self, x: Tensor, logits: Tensor) -> Tensor:
        """Σ_e coefficient(n, j*(p,q), e) · conv2d(x, w_e): the same sum as with a kernel for each region, regrouped."""
        o, c, e = self.out_channels, self.in_channels, self.experts
        experts = self.weight.t().reshape(e * o, c, *self.kernel_size)
        answers = conv2d(x, experts, None, self.stride, self.padding, self.dilation, 1, self.padding_mode)
        answers = answers.unflatten(1, (e, o))  # N (E O) P Q -> N E O P Q
        share = (self.coefficients(x).transpose(1, 2) @ choice(logits).flatten(2)).unflatten(2, logits.shape[2:])
        return (answers * share.to(answers.dtype).unsqueeze(2)).sum(1, dtype=answers.dtype)  # share: N E P Q

    def coefficients(self, x: Tensor) -> Tensor:
        """The routing generator's 2 · sigmoid / E: `N m E`, in float32 for half types."""
        z = exact(self.routing_fc(exact_mean(x)))
        return 2 * torch.sigmoid(z).view(-1, self.regions, self.experts) / self.experts

    def _adaptive(self, x: Tensor, logits: Tensor) -> Tensor:
        m, o = self.regions, self.out_channels
        kernels = self.region_kernels(x).flatten(1, 2)  # N (m O) C R S
        answers = per_sample_conv2d(x, kernels, self.stride, self.padding, self.dilation, 1, self.padding_mode)
        chosen = choice(logits).to(answers.dtype).unsqueeze(2)  # N m 1 P Q
        return (answers.unflatten(1, (m, o)) * chosen).sum(1, dtype=answers.dtype)

    def region_kernels(self, x: Tensor) -> Tensor:
        """W(x): `N m O C R S`."""
        shape = (self.regions, self.out_channels, self.in_channels, *self.kernel_size)
        if self.generator == "adaptive":
            return self.conv_kernel(x).unflatten(1, shape[:3])  # type: ignore[no-any-return]
        return (self.coefficients(x).to(self.weight.dtype) @ self.weight.t()).unflatten(2, shape[1:])

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Exact with routing, and for a 1×1 with adaptive: every region starts with the dense kernel.

        The experts keep their fresh differences from each other, so that the routing can tell the regions apart. The
        adaptive generator's constant part has no taps to differ by: a larger kernel starts fresh.
        """
        if self.generator == "routing":
            self.routing_fc.weight.zero_()
            self.routing_fc.bias.zero_()
            self.weight.sub_(self.weight.mean(1, keepdim=True)).add_(conv.weight.reshape(-1, 1))
        elif self.kernel_size == (1, 1):
            self.conv_kernel[3].weight.zero_()
            self.conv_kernel[3].bias.copy_(conv.weight.flatten().repeat(self.regions))
        else:
            return False
        take_bias_(self.bias, conv)
        return True

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        """Every kernel is linear in the stored numbers, whose output channels take the scale."""
        if self.generator == "routing":
            _scale_rows_(self.weight, scale.repeat_interleave(self.weight.shape[0] // self.out_channels))
        else:
            for stored in self.conv_kernel[3].parameters():  # m (O C)
                _scale_rows_(stored, scale.repeat_interleave(self.in_channels).repeat(self.regions))
        scale_bias_(self, scale, shift, self.weight if self.generator == "routing" else self.conv_kernel[3].weight)
        return True

    @classmethod
    def cost(
        cls,
        spec: ConvSpec,
        *,
        regions: int = 8,
        generator: str = "routing",
        guide: str | None = "conv",
        experts: int = 8,
    ) -> Cost:
        c, o, m, taps, pixels = spec.c, spec.o, regions, math.prod(spec.kernel), spec.p * spec.q
        weights = taps * c * o
        guiding = {"conv": taps * c * m, "pointwise": c * m, None: 0}[guide]
        if generator == "routing":
            params, counted = experts * weights + m * experts * (c + 1), m * experts * weights
            executed = experts * weights * pixels + m * experts * (c + pixels)  # routing_fc, coefficients to positions
        else:
            params, counted = (c + 1) * m**2 + (m + 1) * m * c * o, taps * (c * m**2 + m**2 * c * o)
            executed = m * weights * pixels + counted
        return Cost.of(
            spec,
            spec.n * (weights * pixels + counted + guiding * pixels),
            params + guiding + m * (guide == "conv") + o * spec.bias,
            executed_macs=spec.n * (executed + guiding * pixels),
        )

    @classmethod
    def why_not(
        cls,
        spec: ConvSpec,
        *,
        regions: int = 8,
        generator: str = "routing",
        guide: str | None = "conv",
        experts: int = 8,
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        for option, value in {"regions": regions, "experts": experts}.items():
            if not isinstance(value, int) or value < 1:
                return f"{option}={value!r} must be a whole number of at least 1"
        if generator not in ("routing", "adaptive"):
            return f"generator={generator!r}: 'routing' or 'adaptive'"
        if guide not in ("conv", "pointwise", None):
            return f"guide={guide!r}: 'conv', 'pointwise' or None"
        return None


@leaf_function
def choice(logits: Tensor) -> Tensor:
    """The one-hot of the argmax over dim 1 in value; its gradient reaches the logits as the softmax's would.

    `N m P Q`, float32 for half types. The indices stay whole numbers throughout.
    """
    index = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
    hard = (index == logits.argmax(1, keepdim=True)).to(torch.promote_types(logits.dtype, torch.float32))
    if not (torch.is_grad_enabled() and logits.requires_grad) and not torch.jit.is_tracing():
        return hard
    soft = torch.softmax(logits, 1, dtype=hard.dtype)
    return hard + (soft - soft.detach())


@leaf_function
def _alone(x: Tensor, logits: Tensor | None, guide: Any) -> Tensor:
    """`x`; of a traced graph the second input may be there and yet be None."""
    if logits is not None:
        raise BadInput(f"drconv has a guide of its own, guide={guide!r}; type guide=None to pass logits in")
    return x


@leaf_function
def given_logits(logits: Tensor | None, regions: int) -> Tensor:
    """The second input of a layer without a guide of its own. Raises BadInput unless `N regions H W`."""
    if logits is None or logits.ndim != 4 or logits.shape[1] != regions:
        got = "none" if logits is None else f"{tuple(logits.shape)}"
        raise BadInput(f"drconv with guide=None needs logits `N {regions} H W` as second input, got {got}")
    return logits


@leaf_function
def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of `N C H W`, by whole-number indices floor(i · H / P)."""
    for dim, wanted in zip((2, 3), size, strict=True):
        if torch.jit.is_tracing() or x.shape[dim] != wanted:
            x = x.index_select(dim, torch.arange(wanted, device=x.device) * x.shape[dim] // wanted)
    return x


class AdaptiveAverage(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` that leaves the size of an exported program's input open."""

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_average(x, self.output_size)


@leaf_function
def adaptive_average(x: Tensor, size: Any) -> Tensor:
    """`F.adaptive_avg_pool2d`; for exported programs as two products, for torch's own parts keep the traced size.

    Output i averages the rows from floor(i · H / R) up to, not with, ceil((i + 1) · H / R).
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, size)
    averages = []
    for whole, parts in zip(x.shape[2:], size, strict=True):
        part, place = torch.arange(parts, device=x.device)[:, None], torch.arange(whole, device=x.device)
        first, last = part * whole // parts, ((part + 1) * whole + parts - 1) // parts
        averages.append(((place >= first) & (place < last)).to(x.dtype) / (last - first).to(x.dtype))
    return averages[0] @ x @ averages[1].t()  # N C H W -> N C R S


def _scale_rows_(stored: Tensor, scale: Tensor) -> None:
    stored.copy_(stored.double() * scale.double().view(-1, *[1] * (stored.ndim - 1)))
