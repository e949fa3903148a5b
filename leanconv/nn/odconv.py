"""ODConv: per sample, a mixture of n kernels, modulated along taps, input channels and output channels.

    z     = relu(norm(F · mean_hw(x)))                                h = max(floor(reduction · C), 16) numbers
    ac    = sigmoid((Hc z + bc) / T)            input channels, C
    af    = sigmoid((Hf z + bf) / T)            output channels, O; none (= 1) where C = O = G
    as    = sigmoid((Hs z + bs) / T)            taps, R·S; none where R = S = 1
    aw    = softmax((Hw z + bw) / T)            kernels, n; none where n = 1
    y[n]  = af[n] · conv2d(ac[n] · x[n], as[n] · Σ_j aw[n,j] · w_j) + bias

MACs per sample P·Q·O·(C/G)·R·S + h·(2C + O + R·S + n), less the absent heads; mixing the kernels runs n·O·(C/G)·R·S
more. On the smallest maps of a large batch n times the first term runs instead: there the outputs are mixed
(`ops.per_sample.mixes_outputs`). While training T is the attribute `temperature`, which `Schedule` takes from its start
to 1 over ten epochs; in eval T = 1. Nothing folds but the squeeze's BatchNorm.
Source: Li, Zhou, Yao, ICLR 2022, arXiv:2209.07947, and the authors' `modules/odconv.py`, whose state this loads.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import Cost, dense_cost
from leanconv.nn.base import Operator, deployed, kaiming_fan_out_
from leanconv.nn.exact import ExactConv2d
from leanconv.nn.starts import take_bias_
from leanconv.ops.exact import exact, exact_mean
from leanconv.ops.fold import fold_bn_, scale_bias_
from leanconv.ops.padded import conv2d
from leanconv.ops.per_sample import mixed_conv2d, mixes_outputs
from leanconv.registry import register
from leanconv.spec import ConvSpec

MIN_HIDDEN = 16
NORMS: dict[str, Any] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda h, **factory: nn.GroupNorm(1, h, **factory),
    "none": None,
}


@register("odconv")
class ODConv2d(Operator):
    """ODConv; a square kernel, all else as Conv2d. The n kernels share the attentions, as in the authors' code.

    Parameters: `weight` `n O C/G R S`, `attention.*`, and `bias`, one on the output (the paper has none). All start
    Kaiming-normal with the true fan-out: a fresh layer answers with about 1/8 of a plain one.
    With `norm="batch"` a batch of one sample cannot be trained: PyTorch's BatchNorm raises on one value a channel.

    Args: `nn.Conv2d`'s; and
        kernels: n, how many kernels are mixed.
        reduction: of the squeeze's width.
        temperature: T at the start of training; without a `Schedule` it stays, though eval has 1: then say 1.
        norm: of the squeeze: "batch" (the paper's), "layer" or "none".
    """

    paper = "Li et al. 2022, arXiv:2209.07947"
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
        kernels: int = 4,
        reduction: float = 1 / 16,
        temperature: float = 30.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, kernels=kernels, reduction=reduction, temperature=temperature, norm=norm)
        self.kernels, self.reduction, self.norm = kernels, reduction, norm
        self.start_temperature = self.temperature = float(temperature)
        factory = {"device": device, "dtype": dtype}
        self.attention = Attention(spec, kernels, reduction, norm, **factory)
        self.weight = nn.Parameter(torch.empty(kernels, spec.o, spec.c // spec.groups, *spec.kernel, **factory))
        self.bias = nn.Parameter(torch.zeros(spec.o, **factory)) if bias else None
        with torch.no_grad():
            self.weight.normal_(0.0, math.sqrt(2 / (spec.o // spec.groups * math.prod(spec.kernel))))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As a matrix goes our 5-D weight: `.to(memory_format=torch.channels_last)` fails on every 5-D parameter."""
        return super()._apply(lambda t: fn(t.flatten(1)).view(t.shape) if t.ndim == 5 else fn(t), recurse)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "temperature": self.start_temperature}

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        channels, filters, taps, mixture = self.attention(x, self.temperature if self.training else 1.0)
        x = x * channels.to(x.dtype)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        if taps is None and mixture is None:
            y = conv2d(x, self.weight[0], None, *geometry)
        else:
            y = mixed_conv2d(x, self.weight, mixture, taps, *geometry)
        if filters is not None:
            y = y * filters.to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    def fold(self) -> nn.Module:
        """The squeeze's BatchNorm goes into the squeeze; the rest depends on the input."""
        if not isinstance(self.attention.bn, nn.BatchNorm2d):
            return self
        folded = deployed(self)
        fold_bn_(folded.attention.fc, folded.attention.bn)
        folded.attention.bn = nn.Identity()
        return folded  # type: ignore[no-any-return]

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Exact at every T: the heads go to zero, their gates to 1/2, the mean kernel is the dense one times 2 a gate.

        The kernels keep their fresh differences from each other, without which they would stay equal for ever.
        """
        gates = 0
        for key in ("channel_fc", "filter_fc", "spatial_fc", "kernel_fc"):
            head = getattr(self.attention, key)
            if head is not None:
                head.weight.zero_()
                head.bias.zero_()
                gates += key != "kernel_fc"
        self.weight.sub_(self.weight.mean(0)).add_(conv.weight * 2**gates)
        take_bias_(self.bias, conv)
        return True

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        self.weight.copy_(self.weight.double() * scale.double().view(-1, 1, 1, 1))
        scale_bias_(self, scale, shift, self.weight)
        return True

    @classmethod
    def cost(
        cls,
        spec: ConvSpec,
        *,
        kernels: int = 4,
        reduction: float = 1 / 16,
        temperature: float = 30.0,
        norm: str = "batch",
    ) -> Cost:
        plain, hidden, heads = dense_cost(spec), _hidden(spec, reduction), _heads(spec, kernels)
        weights = spec.o * (spec.c // spec.groups) * math.prod(spec.kernel)
        attention, params = hidden * (spec.c + sum(heads.values())), sum(heads.values())
        macs = plain.macs + spec.n * attention
        shape = (kernels, spec.o, spec.c // spec.groups, *spec.kernel)
        if mixes_outputs(spec.n, spec.p * spec.q, shape, spec.groups):
            mixing = (kernels - 1) * plain.macs
        else:
            mixing = spec.n * kernels * weights if kernels > 1 else 0
        return Cost.of(
            spec,
            macs,
            kernels * weights + attention + params + spec.o * spec.bias,
            executed_macs=macs + mixing,
            norm_params=0 if norm == "none" else 2 * hidden,
        )

    @classmethod
    def why_not(
        cls,
        spec: ConvSpec,
        *,
        kernels: int = 4,
        reduction: float = 1 / 16,
        temperature: float = 30.0,
        norm: str = "batch",
    ) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if spec.kernel[0] != spec.kernel[1]:
            return f"kernel_size={spec.kernel} is not square"
        if not isinstance(kernels, int) or kernels < 1:
            return f"kernels={kernels!r} must be a whole number of at least 1"
        for option, value in {"reduction": reduction, "temperature": temperature}.items():
            if not 0 < value < math.inf:
                return f"{option}={value!r} must be above 0"
        if norm not in NORMS:
            return f"norm={norm!r}: 'batch', 'layer' or 'none'"
        return None


class Attention(nn.Module):
    """The squeeze and its heads: `N C H W -> N C 1 1, N O 1 1, N 1 1 R S, N n`, None where the spec has no such head.

    Softmax, sigmoid and the average run in float32 for half types, under autocast all of it.
    """

    def __init__(self, spec: ConvSpec, kernels: int, reduction: float, norm: str, **factory: Any) -> None:
        super().__init__()
        self.taps = spec.kernel
        hidden, heads = _hidden(spec, reduction), _heads(spec, kernels)
        self.fc = ExactConv2d(spec.c, hidden, 1, bias=False, **factory)
        self.bn = nn.Identity() if norm == "none" else NORMS[norm](hidden, **factory)
        self.channel_fc, self.filter_fc, self.spatial_fc, self.kernel_fc = (
            ExactConv2d(hidden, heads[key], 1, **factory) if heads[key] else None
            for key in ("channels", "filters", "taps", "kernels")
        )
        kaiming_fan_out_(*(m for m in self.modules() if isinstance(m, nn.Conv2d)))

    def forward(self, x: Tensor, temperature: float) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        z = F.relu(self.bn(self.fc(exact_mean(x, keepdim=True))))
        channels, filters, taps, kernels = (
            None if head is None else exact(head(z)) / temperature
            for head in (self.channel_fc, self.filter_fc, self.spatial_fc, self.kernel_fc)
        )
        assert channels is not None
        return (
            torch.sigmoid(channels),
            None if filters is None else torch.sigmoid(filters),
            None if taps is None else torch.sigmoid(taps).view(-1, 1, 1, *self.taps),
            None if kernels is None else torch.softmax(kernels.flatten(1), 1),
        )


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Give every ODConv of a model this T for training; eval has 1 whatever it is."""
    for module in model.modules():
        if isinstance(module, ODConv2d):
            module.temperature = float(temperature)


def _hidden(spec: ConvSpec, reduction: float) -> int:
    return max(int(spec.c * reduction), MIN_HIDDEN)


def _heads(spec: ConvSpec, kernels: int) -> dict[str, int]:
    """How many numbers each head gives; 0 where the layer has none."""
    taps = math.prod(spec.kernel)
    return {
        "channels": spec.c,
        "filters": 0 if spec.c == spec.groups == spec.o else spec.o,
        "taps": 0 if taps == 1 else taps,
        "kernels": 0 if kernels == 1 else kernels,
    }
