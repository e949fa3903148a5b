"""A known way to make a trained convolution leaner, as an operator: what a fit of ours stands beside.

`register_baselines` registers it: `plan` and `apply_` then swap it and fit it on the same images as any other. It takes
the best last factor in the inputs' covariance, where that is given. Network decoupling (Guo et al. 2018,
arXiv:1808.05517) is `depthwise_separable(multiplier=...)`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator
from leanconv.ops.least_squares import root
from leanconv.registry import names, register
from leanconv.spec import ConvSpec


class Tucker2Conv2d(Operator):
    """1×1 to `share`·C channels, k×k to `share`·O, 1×1 to O: Tucker-2 of the kernel.

    Source: Kim et al. 2016, arXiv:1511.06530. The factors of the channels are the leading singular vectors of the
    kernel's two unfoldings (HOSVD); of the outputs in their covariance, where the inputs' is given.
    """

    name = "tucker2"
    paper = "Kim et al. 2016, arXiv:1511.06530"
    accepts = frozenset({"stride", "dilation"})

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
        share: float = 0.45,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec, factory = self._check(*sizes, share=share), {"device": device, "dtype": dtype}
        self.share, (c, o) = share, _ranks(spec, share)
        self.reduce = nn.Conv2d(spec.c, c, 1, bias=False, **factory)
        self.core = nn.Conv2d(c, o, spec.kernel, spec.stride, spec.padding, spec.dilation, bias=False, **factory)
        self.expand = nn.Conv2d(o, spec.o, 1, bias=spec.bias, **factory)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        return self.expand(self.core(self.reduce(x)))  # type: ignore[no-any-return]

    def dense_weight(self) -> Tensor:  # O C R S
        first, last = self.reduce.weight[..., 0, 0], self.expand.weight[..., 0, 0]
        return torch.einsum("om,mkrs,kc->ocrs", last, self.core.weight, first)

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        kernel = conv.weight.detach().double()
        metric = _metric(kernel, gram)
        rows = kernel.flatten(1)
        outputs = torch.linalg.eigh(rows @ metric @ rows.T)[1][:, -self.core.out_channels :]  # O M
        inputs = torch.linalg.svd(kernel.transpose(0, 1).flatten(1))[0][:, : self.core.in_channels]  # C K
        taps = kernel[0, 0].numel()
        features = torch.kron(inputs.T.contiguous(), torch.eye(taps, dtype=kernel.dtype, device=kernel.device))
        core = best_last(outputs.T @ rows, features, metric)
        self.reduce.weight.copy_(inputs.T[..., None, None])
        self.core.weight.copy_(core.view(self.core.weight.shape))
        self.expand.weight.copy_(outputs[..., None, None])
        _take_bias_(self.expand, conv)
        return True

    @classmethod
    def cost(cls, spec: ConvSpec, *, share: float = 0.45) -> Cost:
        (c, o), taps = _ranks(spec, share), spec.kernel[0] * spec.kernel[1]
        macs = spec.n * (spec.h * spec.w * spec.c * c + spec.p * spec.q * (c * o * taps + o * spec.o))
        return Cost.of(spec, macs=macs, params=spec.c * c + c * o * taps + o * spec.o + spec.o * spec.bias)


def register_baselines() -> None:
    """Register it, once a process."""
    if Tucker2Conv2d.name not in names():
        register(Tucker2Conv2d.name)(Tucker2Conv2d)


def best_last(target: Tensor, features: Tensor, metric: Tensor) -> Tensor:
    """The W `O K` with the least tr((W·B - T) Γ (W·B - T)ᵀ), B `K D` the features, T `O D` the target, Γ `D D`."""
    lower = root(features @ metric @ features.T)
    return torch.cholesky_solve((target @ metric @ features.T).T, lower).T


def _metric(kernel: Tensor, gram: Tensor | None) -> Tensor:
    size = kernel[0].numel()
    return torch.eye(size, dtype=kernel.dtype, device=kernel.device) if gram is None else gram[0]


def _ranks(spec: ConvSpec, share: float) -> tuple[int, int]:
    return max(1, round(share * spec.c)), max(1, round(share * spec.o))


def _take_bias_(last: nn.Conv2d, conv: nn.Conv2d) -> None:
    if last.bias is not None and conv.bias is not None:
        last.bias.copy_(conv.bias)
