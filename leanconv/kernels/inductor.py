"""torch.compile's Inductor: whether it can run on this machine, and functions that share no compiled programs."""

import contextlib
import functools
import importlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from leanconv.kernels import limited


def why_not(device: torch.device) -> str:
    """Why torch.compile cannot run on a device, or ""."""
    if device.type == "cpu":
        return compiler_obstacle()
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "torch.compile needs Triton on a GPU: pip install triton"
    return ""


@functools.lru_cache(1)
def compiler_obstacle() -> str:
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


def used() -> bool:
    """Whether Inductor has compiled for a CPU in this process: its modules are imported, its headers compiled."""
    cache = sys.modules.get("torch._inductor.codecache")
    return bool(cache is not None and cache.CppPythonBindingsCodeCache.cache)


@functools.lru_cache(1)
def _import_quietly() -> None:
    """Import PyTorch's module for C++ code, which warns where it finds CUDA's folder and no GPU."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.suppress(Exception):  # Inductor says itself what is missing
            importlib.import_module("torch.utils.cpp_extension")
    finally:
        log.setLevel(level)


def own_code(model: Callable[..., Any]) -> Any:
    """Wrap `model` in a function that has its own code object.

    Dynamo keeps at most eight compiled programs per code object. With a shared one, the ninth optimised model of a
    process would silently run eagerly.
    """
    _import_quietly()

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return types.FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
