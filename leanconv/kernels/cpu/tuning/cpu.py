"""What the kernels know of a processor: a value that is passed to whatever depends on it. `this_cpu` reads it once."""

import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanconv.errors import MissingExtra
from leanconv.kernels.cpu.pipelines.frontend import halide

# Where nothing says a size, or a size of nothing (virtual machines, containers, Arm): what most processors have.
L1, L2 = 32 << 10, 1 << 20


@dataclass(frozen=True)
class Cpu:
    """One kind of processor.

    Attributes:
        vendor: as it names itself, such as "GenuineIntel"; "" where it does not.
        lanes, registers: float32 numbers of its widest vectors, and how many vectors it holds.
        l1, l2, l3: bytes of the data caches that a core reaches, the least of all cores; 0 for no third level.
        bf16: it adds two products of bfloat16 in one instruction, which Halide knows of.
        vnni: it adds products of 8-bit integers in one instruction.
        amx: it multiplies tiles of bfloat16 in a unit of its own, which oneDNN uses and Halide does not.
        double_pumped: its widest vectors pass its units in two halves (Zen 4).
    """

    vendor: str = ""
    lanes: int = 8
    registers: int = 16
    l1: int = L1
    l2: int = L2
    l3: int = 0
    bf16: bool = False
    vnni: bool = False
    amx: bool = False
    double_pumped: bool = False

    @property
    def half_speed(self) -> float:
        """How many numbers a cycle vectors of half the width get through, of the widest ones'."""
        return 1.0 if self.lanes <= 8 or self.double_pumped else 0.5


@functools.cache
def this_cpu() -> Cpu:
    """The processor of this process."""
    root = Path("/")
    names, flags = cpuinfo(root)
    lanes, bf16, double_pumped = _vectors(flags)
    told = caches(root, usable_cores())
    l1, l2 = (told[0] or _configured("SC_LEVEL1_DCACHE_SIZE")), (told[1] or _configured("SC_LEVEL2_CACHE_SIZE"))
    return Cpu(
        vendor=names.get("vendor_id") or names.get("CPU implementer", ""),
        lanes=lanes,
        registers=16 if lanes == 8 else 32,
        l1=l1 or L1,
        l2=l2 or L2,
        l3=told[2],
        bf16=bf16,
        vnni=bool({"avx512_vnni", "avx_vnni", "asimddp"} & flags),
        amx=_has_amx(),
        double_pumped=double_pumped,
    )


def _vectors(flags: frozenset[str]) -> tuple[int, bool, bool]:
    """Widest vector, sums of two products, and halves at a time: of what Halide compiles for, where it can be had."""
    try:
        hl = halide()
    except MissingExtra:
        return (16 if "avx512f" in flags else 8 if "avx" in flags else 4), False, False
    target: Any = hl.get_host_target()
    pairs = (getattr(hl.TargetFeature, name) for name in ("AVX512_Zen4", "AVX512_SapphireRapids"))
    return (int(target.natural_vector_size(hl.Float(32))), any(map(target.has_feature, pairs)), "znver4" in str(target))


def _has_amx() -> bool:
    """PyTorch asks the system, too, which must let a process use it."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def usable_cores() -> frozenset[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpuinfo(root: Path = Path("/")) -> tuple[dict[str, str], frozenset[str]]:
    """What Linux says of its first core, by name, and the features of it (x86, Arm); nothing elsewhere."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}, frozenset()
    named: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            named.setdefault(key.strip(), value.strip())
    return named, frozenset((named.get("flags") or named.get("Features", "")).split())


def caches(root: Path, cores: Iterable[int]) -> tuple[int, int, int]:
    """Bytes of the data caches of three levels, the least that any of the cores reaches; 0 where nothing says."""
    found: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
    for core in cores:
        for place in (root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
            level, kind, size = (_read(place / name) for name in ("level", "type", "size"))
            if kind in ("Data", "Unified") and level in ("1", "2", "3"):
                found[int(level)].add(_bytes(size))
    first, second, third = (min(sizes - {0}, default=0) for sizes in found.values())
    return first, second, third


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _bytes(size: str) -> int:
    """`"48K"` -> 49152; 0 for what is no size."""
    parts = re.fullmatch(r"(\d{1,9})([KMG]?)", size)
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[parts[2]] if parts else 0


def _configured(name: str) -> int:
    try:
        return max(0, os.sysconf(name))
    except (ValueError, OSError, AttributeError):
        return 0
