"""torch.compile for one shape, with frozen weights and channels_last for images: Inductor's fastest inference mode."""

import functools
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.eager import has_images, too_slow
from leanconv.engine.workbench import Workbench
from leanconv.kernels import limited


def _why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if bench.device.type == "cpu" and (reason := _compiler_obstacle()):
        return reason
    if bench.device.type == "cuda" and not torch.utils._triton.has_triton():
        return "torch.compile needs Triton on a GPU: pip install triton"
    return too_slow(bench, dtype)


@functools.lru_cache(1)
def _compiler_obstacle() -> str:
    """Return why Inductor has no working C++ compiler, or "". Inductor itself waits for ever for one that hangs."""
    names = [*os.environ.get("CXX", "").split()[:1], "g++", "c++", "clang++"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        return "torch.compile needs a C++ compiler: apt install g++"
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "header.cpp"
            source.write_text("#include <vector>\n")
            limited.run([found, "-c", str(source), "-o", str(source.with_suffix(".o"))])
    except subprocess.TimeoutExpired as error:
        return f"torch.compile needs a C++ compiler, and {found} did not end within {error.timeout:g} s"
    except OSError as error:
        if error.filename == found:
            return f"torch.compile needs a C++ compiler, and {found} does not run: {error.strerror}"
        return f"torch.compile needs a temporary folder: {error.strerror}: {error.filename}"
    return ""


def _seconds(bench: Workbench) -> float:
    # A U-Net of 35 to 160 layers takes 12 to 19 s on one server core. The first use also compiles headers.
    return bench.folding_s + 5.0 + 0.1 * bench.layers + 3 * bench.call_s


def _prepare(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    images = has_images(bench)
    model = bench.copy_of_folded(dtype)
    if images:
        model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(_own_code(model), dynamic=False, options={"freezing": True})

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


def _own_code(model: nn.Module) -> Any:
    """Wrap `model` in a function that has its own code object.

    Dynamo keeps at most eight compiled programs per code object. With a shared one, the ninth optimised model of a
    process would silently run eagerly.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return types.FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


COMPILE = Candidate("compile", _why_not, _seconds, _prepare)
