"""Operator: the methods that every efficient convolution has, with their defaults."""

import functools
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from leanconv.copies import copied
from leanconv.cost import Cost
from leanconv.errors import BadInput, UnsupportedConv
from leanconv.nn.starts import checked_start
from leanconv.ops.fx import leaf_function
from leanconv.registry import get, misfit, parse
from leanconv.spec import ConvSpec, PaddingMode, centred

# What a field of a spec must be for an operator that does not list the field in `accepts`.
_PLAIN: dict[str, Any] = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}


def batch_or_sample(forward: Any) -> Any:
    """The `forward` of a layer, for `N C H W` or, as nn.Conv2d takes it too, one sample `C H W`.

    Of `C H W` dim 1 are rows: split or put in another order as channels they would be a wrong picture, no error.
    Raises: BadInput for an input of other dimensions, or other channels than the layer's `in_channels`.
    """

    @functools.wraps(forward)
    def checked(self: Any, x: Tensor, *more: Any, **named: Any) -> Any:
        batch = checked_batch(x, self.in_channels)
        others = {key: value if value is None else _batched(value, x) for key, value in named.items()}
        return _unbatched(forward(self, batch, *(v if v is None else _batched(v, x) for v in more), **others), x)

    return checked


@leaf_function
def checked_batch(x: Tensor, channels: int) -> Tensor:
    """`N C H W` as it is, `C H W` as a batch of one. Raises BadInput for other dimensions or another C."""
    if x.ndim not in (3, 4):
        raise BadInput(f"an input of shape {tuple(x.shape)} is neither N C H W nor C H W; reshape it")
    # A trace has sizes that are tensors: to look at them would make PyTorch warn of a wrong trace.
    if not torch.jit.is_tracing() and x.shape[-3] != channels:
        raise BadInput(f"an input of shape {tuple(x.shape)} has {x.shape[-3]} channels, the layer takes {channels}")
    return x if x.ndim == 4 else x[None]


@leaf_function
def _batched(value: Any, x: Tensor) -> Any:
    """A second input, in a batch of one where `x` has no batch; None where a traced graph was called without it."""
    return value if value is None or x.ndim == 4 else value[None]


@leaf_function
def _unbatched(y: Tensor, x: Tensor) -> Tensor:
    return y if x.ndim == 4 else y[0]


class Operator(nn.Module):
    """An efficient convolution that stands where an `nn.Conv2d` stood: `N C H W -> N O P Q`, sizes by Conv2d's formula;
    and `C H W -> O P Q`. A subclass's `forward` sees `N C H W` alone (`batch_or_sample`).

    A subclass takes `nn.Conv2d`'s arguments in its order and its own options keyword-only, calls `_check`, and says
    what it `accepts` and what kinds of layers it `replaces`.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    accepts: ClassVar[frozenset[str]] = frozenset({"stride", "dilation"})
    replaces: ClassVar[frozenset[str]] = frozenset({"dense"})

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: Any  # a pair, or "same" where the two sides differ
    dilation: tuple[int, int]
    groups: int
    padding_mode: PaddingMode

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name, wrapper in (("forward", batch_or_sample), ("project_", checked_start)):
            if name in cls.__dict__:
                setattr(cls, name, wrapper(cls.__dict__[name]))

    def _check(self, *arguments: Any, **options: Any) -> ConvSpec:
        """Set Conv2d's size attributes and return them as a spec. Raises UnsupportedConv with what to type instead."""
        spec = ConvSpec.of(*arguments)
        if reason := misfit(type(self), options) or type(self).why_not(spec, **options):
            raise UnsupportedConv(f"{self.name}: {reason}")
        self.in_channels, self.out_channels, self.kernel_size = spec.c, spec.o, spec.kernel
        self.stride, self.padding, self.dilation = spec.stride, spec.padding, spec.dilation
        self.groups, self.padding_mode = spec.groups, spec.padding_mode
        return spec

    def _constant(self, name: str, value: Tensor, device: Any) -> None:
        """A buffer that no checkpoint holds; `value` lies on the CPU. Built on "meta" it waits there for `to_empty`."""
        placed = value.to(torch.get_default_device() if device is None else device)
        self.register_buffer(name, placed, persistent=False)
        if placed.is_meta:
            self.__dict__.setdefault("_waiting", {})[name] = value

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        waiting = self.__dict__.get("_waiting", {})
        for name in [name for name in waiting if not getattr(self, name).is_meta]:
            getattr(self, name).copy_(waiting.pop(name))
        return self

    def options(self) -> dict[str, Any]:
        """The operator's own options, as given: what `registry.unparse` prints and `from_conv` takes."""
        from leanconv.registry import options_of

        return {key: getattr(self, key) for key in options_of(type(self)) if key not in ("device", "dtype")}

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """A replacement of `conv`: its sizes, device, dtype and mode, with fresh weights (see `project_`).

        Raises: UnsupportedConv where `why_not` gives a reason.
        """
        spec = ConvSpec.from_conv(conv)
        new = cls(**spec.arguments(), **options, device=conv.weight.device, dtype=conv.weight.dtype)
        return new.train(conv.training)

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """Take over what a dense layer has learnt: become the member of the family that is nearest to it.

        The nearest W has the least Σ_g tr((W_g - T_g) Γ_g (W_g - T_g)ᵀ) for T the layer's weight; each operator says
        whether it is reached, and which of its parts are no part of that sum. The bias is the layer's. Taps outside of
        the dense kernel start at zero, and every weight can learn.

        Args:
            conv: a layer of this operator's sizes. It stays as it is.
            gram: Γ, the mean of x xᵀ over the unfolded patches of the layer's inputs, `G D D`, D = C/G·R·S in the order
                of `conv.weight.flatten(1)`. None: white inputs, the plain least squares.
        Returns: False where there is no closed form: then the weights stay fresh.
        Raises: BadInput for numbers that are not finite and for shapes that do not fit.
        """
        return False

    def fold(self) -> nn.Module:
        """The cheapest module with the same outputs in eval mode. Default: the operator itself."""
        return self

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        """Absorb `y -> y · scale + shift` (one number per output channel) into the weights; False where not exact."""
        return False

    def dense_weight(self) -> Tensor | None:
        """The kernel `O C/G R S` of the dense convolution that a linear operator equals; None for the others."""
        return None

    @classmethod
    def cost(cls, spec: ConvSpec, **options: Any) -> Cost:
        """Exact MACs, parameters and bytes for one input; builds nothing."""
        raise TypeError(f"{cls.__name__} does not say its cost")

    @classmethod
    def why_not(cls, spec: ConvSpec, **options: Any) -> str | None:
        """Why the operator cannot stand for this convolution (with the value and what to type), or None if it can."""
        for field, plain in _PLAIN.items():
            value = getattr(spec, field)
            if field not in cls.accepts and value != plain:
                return f"{field}={value} is not supported; it needs {field}={plain!r}"
        return None

    @classmethod
    def why_keep(cls, spec: ConvSpec) -> str | None:
        """Why `plan` leaves a layer of these sizes unless it is named, though the operator could stand for it.

        For papers that replace only some sizes of the kinds in `replaces`; None where it is replaced.
        """
        return None

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return ", ".join([sizes, *(f"{key}={value!r}" for key, value in self.options().items())])


def make(operator: str, *arguments: Any, **keywords: Any) -> nn.Module:
    """Build a layer from an operator string and `nn.Conv2d`'s arguments: `make("hetconv(part=4)", 64, 128, 3)`."""
    name, options = parse(operator)
    layer: nn.Module = get(name)(*arguments, **keywords, **options)
    return layer


def needs_odd_centred(spec: ConvSpec) -> str | None:
    """The reason why a layer is refused by operators that pair a k×k kernel with a 1×1: odd kernel, centred padding."""
    if spec.kernel[0] % 2 == 0 or spec.kernel[1] % 2 == 0:
        return f"kernel_size={spec.kernel} is even; it needs an odd kernel_size"
    if spec.padding != centred(spec.kernel, spec.dilation):
        return f"padding={spec.padding} is not centred; type padding={centred(spec.kernel, spec.dilation)}"
    return None


def needs_stride_1_or_2(spec: ConvSpec) -> str | None:
    """The reason why a layer is refused by operators that are defined for stride 1 and 2 only."""
    return None if max(spec.stride) <= 2 else f"stride={spec.stride} is not supported; it needs stride 1 or 2"


@torch.no_grad()
def kaiming_fan_out_(*convs: nn.Conv2d) -> None:
    """Kaiming-normal with the true fan-out (live connections per input: O/G·R·S) and zero biases; ReLU gain."""
    for conv in convs:
        fan_out = conv.out_channels // conv.groups * math.prod(conv.kernel_size)
        conv.weight.normal_(0.0, math.sqrt(2.0 / fan_out))
        if conv.bias is not None:
            conv.bias.zero_()


def deployed(module: nn.Module) -> Any:
    """A copy in eval mode to fold in: folding never changes the module it starts from."""
    return copied(module).eval()
