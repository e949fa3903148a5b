"""torch.compile for one shape, with frozen weights and channels_last for images: Inductor's fastest inference mode."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from leanconv.copies import copied
from leanconv.engine.ahead import Work
from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.eager import has_images, too_slow
from leanconv.engine.workbench import Workbench
from leanconv.kernels import inductor


def _why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    return inductor.why_not(bench.device) or too_slow(bench, dtype)


def _seconds(bench: Workbench) -> float:
    # A U-Net of 35 to 160 layers takes 12 to 19 s on one server core; the first one also compiles headers.
    first = 0.0 if inductor.used() else 8.0
    return bench.folding_s + 2.0 + first + 0.1 * bench.layers + 3 * bench.call_s


def _prepare(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    run, convert = _compiled(bench.copy_of_folded(dtype), has_images(bench), dtype)
    return bench.nested(run, convert, cast=dtype is not None)


def _compiled(
    model: nn.Module, images: bool, dtype: torch.dtype | None
) -> tuple[Callable[..., Any], Callable[[Tensor], Tensor]]:
    """The model, which is compiled in the first call, and what converts the tensors of a call."""
    if images:
        model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(inductor.own_code(model), dynamic=False, options={"freezing": True})

    def convert(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return _canonical(tensor, torch.channels_last if images and tensor.dim() == 4 else torch.contiguous_format)

    return compiled, convert


def _ahead(bench: Workbench, dtype: torch.dtype | None) -> Work:
    return fill_cache, (bench.folded, *bench.call(), has_images(bench), dtype)


@torch.no_grad()
def fill_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], images: bool, dtype: torch.dtype | None
) -> None:
    """Compile a folded model as the engine does, so that Inductor's cache on the disk has its kernels."""
    model = copied(model)
    run, convert = _compiled(model if dtype is None else model.to(dtype), images, dtype)
    args, kwargs = tree_map_only(Tensor, convert, (args, kwargs))
    run(*args, **kwargs)


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


COMPILE = Candidate("compile", _why_not, _seconds, _prepare, ahead=_ahead)
