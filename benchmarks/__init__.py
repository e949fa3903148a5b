"""Measurements behind the tables of docs/results.md; each file is a command, `python -m benchmarks.NAME`.

Under `LEANCONV_MAX_CPU_ISA` the peers keep to the same instructions, as far as they can be told: oneDNN (in PyTorch and
OpenVINO) and PyTorch's own loops. ONNX Runtime cannot: its MLAS uses what the CPU has. On a CPU that has no more than
AVX2 nothing is masked, and every peer takes part at its best.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# What oneDNN and ATen call our instruction sets. They read these once, when PyTorch is imported.
PEERS = {"avx2": ("AVX2", "avx2"), "avx512_core": ("AVX512_CORE", "avx512")}

if _limit := PEERS.get(os.environ.get("LEANCONV_MAX_CPU_ISA", "").strip().lower()):
    os.environ["ONEDNN_MAX_CPU_ISA"], os.environ["ATEN_CPU_CAPABILITY"] = _limit


def results_of(name: str) -> Path:
    """The results file of a benchmark: one for each set of instructions, and one for each mask of them.

    A masked CPU is not the CPU that has no more: its caches, ports and memory are another's.
    """
    import torch

    from leanconv.kernels import has_amx, mask

    own = "amx" if has_amx() else torch.backends.cpu.get_cpu_capability().lower().replace("avx512", "")
    # The peers' own limits make a masked CPU too.
    limit = mask() or os.environ.get("ATEN_CPU_CAPABILITY", "") or os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    words = [name, *([limit.lower(), "masked"] if limit else [own])]
    return Path(__file__).parent / "results" / f"{'_'.join(filter(None, words))}.json"


def command_of(name: str, words: Sequence[str] | None = None) -> str:
    """The command that a result names: this process's words, without `--out` and its file, which is the machine's."""
    kept: list[str] = []
    given = iter(sys.argv[1:] if words is None else words)
    for word in given:
        if word == "--out":
            next(given, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", "-m", f"benchmarks.{name}", *kept])
