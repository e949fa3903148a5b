"""Max-pooling and the global average, on channels_last maps."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.forms import Form, Pair, Sides, averaged, check_channels, fake_map, finish, out_size


@dataclass(frozen=True)
class MaxPool(Form):
    """What is known of a max-pooling beforehand: channels, sizes as `Stencil`'s, `average` as `Separable`'s."""

    channels: int
    kernel: Pair = (2, 2)
    stride: Pair = (2, 2)
    padding: Sides = (0, 0, 0, 0)
    average: bool = False

    def __post_init__(self) -> None:
        top, bottom, left, right = self.padding
        if top != bottom or left != right or 2 * top > self.kernel[0] or 2 * left > self.kernel[1]:
            raise BadInput(f"padding={self.padding} must be alike on both sides and at most half of {self.kernel}")

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.channels

    def size(self, h: int, w: int) -> Pair:
        """Height and width of the output."""
        return out_size(h, w, self.kernel, self.stride, (1, 1), self.padding)

    def macs(self, h: int, w: int) -> int:
        """None: it multiplies nothing."""
        return 0


def reference(x: Tensor, form: MaxPool) -> tuple[Tensor, Tensor]:
    """`max_pool` in plain PyTorch, for any dtype and device."""
    check_channels([x], [form.channels])
    y = F.max_pool2d(x, form.kernel, form.stride, (form.padding[0], form.padding[2]))
    return finish(y, "none", None, form.average)


@torch.library.custom_op("leanconv::max_pool", mutates_args=())
def max_pool_op(x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """`max_pool` as an operator of PyTorch; `form` is `MaxPool.text`. Inference only."""
    return reference(x, MaxPool.read(form))


@max_pool_op.register_fake
def _(x, form):  # type: ignore[no-untyped-def]
    made = MaxPool.read(form)
    return fake_map(x, made.width, made.size(*x.shape[2:]), made.average)


def max_pool(x: Tensor, form: MaxPool) -> tuple[Tensor, Tensor]:
    """`N C H W -> N C P Q` (channels_last), and its average `N C` in float32 (of no numbers unless `form.average`)."""
    return max_pool_op(x, form.text)


@torch.library.custom_op("leanconv::global_average", mutates_args=())
def global_average(x: Tensor) -> Tensor:
    """The average over height and width: `N C H W -> N C`, float32 (float64 for float64). Inference only."""
    return averaged(x)


@global_average.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[:2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
