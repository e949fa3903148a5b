"""torch.compile for one shape, with frozen weights and channels_last for images: Inductor's fastest inference mode."""

import torch
from torch import Tensor

from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.eager import has_images, too_slow
from leanconv.engine.workbench import Workbench
from leanconv.kernels import inductor


def _why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    return inductor.why_not(bench.device) or too_slow(bench, dtype)


def _seconds(bench: Workbench) -> float:
    # A U-Net of 35 to 160 layers takes 12 to 19 s on one server core. The first use also compiles headers.
    return bench.folding_s + 8.0 + 0.1 * bench.layers + 3 * bench.call_s


def _prepare(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    images = has_images(bench)
    model = bench.copy_of_folded(dtype)
    if images:
        model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(inductor.own_code(model), dynamic=False, options={"freezing": True})

    def convert(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return _canonical(tensor, torch.channels_last if images and tensor.dim() == 4 else torch.contiguous_format)

    return bench.nested(compiled, convert, cast=dtype is not None)


def _canonical(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Return the tensor in `layout` with canonical strides. Other strides on axes of length 1 trigger a recompile."""
    tensor = tensor.contiguous(memory_format=layout)
    sizes = tensor.shape
    order = (1, 3, 2, 0) if layout is torch.channels_last else range(len(sizes) - 1, -1, -1)
    strides, step = [0] * len(sizes), 1
    for axis in order:
        strides[axis] = step
        step *= max(1, sizes[axis])
    return tensor if tensor.stride() == tuple(strides) else tensor.as_strided(sizes, strides)


COMPILE = Candidate("compile", _why_not, _seconds, _prepare)
