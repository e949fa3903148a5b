"""Max-pooling of channels_last maps."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.forms import Pair, Sides, check_channels, finish, out_size


@dataclass(frozen=True)
class MaxPool:
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


def max_pool(x: Tensor, form: MaxPool) -> tuple[Tensor, Tensor]:
    """Run a max-pooling in plain PyTorch, for any dtype and device: `N C H W -> N C P Q` (channels_last).

    The second result is the average `N C` in float32 (of no numbers unless `form.average`).
    """
    check_channels([x], [form.channels])
    y = F.max_pool2d(x, form.kernel, form.stride, (form.padding[0], form.padding[2]))
    return finish(y, "none", None, form.average)
