"""The device of a measurement: name, threads, versions; every table of times states them."""

import contextlib
import functools
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leanconv.kernels import has_amx, mask


def describe(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The device, its name, the threads of this process, the versions that decide its speed."""
    device = torch.device(device)
    facts: dict[str, Any] = {
        "device": str(device), "name": device_name(device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(), "system": platform.system(),
    }  # fmt: skip
    if device.type == "cpu":
        facts["isa"] = instructions()
        if limit := mask():
            facts["max_isa"] = limit  # of our kernels
    if device.type == "cuda":
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def instructions() -> str:
    """What decides the speed of a CPU: its vectors, and its matrix tiles: "AVX2", "AVX512", "AVX512, AMX"."""
    return torch.backends.cpu.get_cpu_capability() + (", AMX" if has_amx() and not mask() else "")


def device_name(device: str | torch.device) -> str:
    """A device's product name, for example "AMD EPYC" or "NVIDIA H200"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else str(device)


def label(
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = None,
    layout: str = "",
    shape: Sequence[int] | None = None,
) -> str:
    """One line: "AMD EPYC (AVX512), 1 thread, float32, channels_last, batch 1, 3x512x512, torch 2.11"."""
    facts = describe(device)
    masked = f", kernels limited to {facts['max_isa']}" if "max_isa" in facts else ""
    words = [facts["name"] + (f" ({facts['isa']}{masked})" if "isa" in facts else "")]
    words.append("1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads")
    if dtype is not None:
        words.append(str(dtype).removeprefix("torch."))
    if layout:
        words.append(layout)
    if shape:
        words.append(f"batch {shape[0]}")
        words.append("x".join(map(str, shape[1:])))
    return ", ".join([*filter(None, words), f"torch {facts['torch']}"])


@functools.cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
        if names:
            return names[0]
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            words = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(words, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return platform.processor() or platform.machine() or "cpu"
