"""The candidates that PyTorch runs layer by layer: folded, and folded in channels_last."""

import torch
from torch import Tensor, nn

from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.workbench import Workbench
from leanconv.kernels import to_channels_last
from leanconv.measure.hardware.number_types import slow_type


def converter(bench: Workbench, dtype: torch.dtype | None, *, channels_last: bool = False):
    """Return a function that casts a tensor to `dtype` and converts 4-D tensors to channels_last if asked."""

    def convert(tensor: Tensor) -> Tensor:
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if channels_last and tensor.dim() == 4:
            tensor = to_channels_last(tensor)
        return tensor

    return convert


def has_images(bench: Workbench) -> bool:
    """Whether the model has a 2-D layer that channels_last can speed up."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    return any(isinstance(module, kinds) for module in bench.model.modules())


def too_slow(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    """Return why PyTorch's own layers are not worth a trial in `dtype` (None: the model's), or None."""
    if dtype is torch.int8:
        return "PyTorch's own layers are not tried in int8"
    return (slow_type(dtype or bench.dtype) or None) if bench.device.type == "cpu" else None


def _channels_last_why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    return too_slow(bench, dtype) if has_images(bench) else "the model has no 2-D convolution"


def _folded(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    if dtype is None:
        return bench.folded
    return bench.nested(bench.copy_of_folded(dtype), converter(bench, dtype), cast=True)


def _channels_last(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    model = bench.copy_of_folded(dtype).to(memory_format=torch.channels_last)
    return bench.nested(model, converter(bench, dtype, channels_last=True), cast=dtype is not None)


FOLDED = Candidate("folded", too_slow, lambda bench: bench.folding_s + 3 * bench.call_s, _folded, any_shape=True)
CHANNELS_LAST = Candidate(
    "channels_last",
    _channels_last_why_not,
    lambda bench: bench.folding_s + 0.5 + 3 * bench.call_s,
    _channels_last,
    any_shape=True,
)
