"""CPU facts as a value that is passed in: vectors, caches, instructions, speeds. `this_cpu` reads them once."""

import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanconv.errors import MissingExtra
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.tuning.instructions import INSTRUCTION_SETS, check, has_amx, mask
from leanconv.kernels.cpu.tuning.speeds import Speeds

# Cache sizes if the system reports none or 0 (virtual machines, containers, Arm): what most processors have.
L1, L2 = 32 << 10, 1 << 20


@dataclass(frozen=True)
class Cpu:
    """A kind of processor.

    Attributes:
        vendor: its own name, as "GenuineIntel"; "" if it reports none.
        lanes, registers: float32 numbers of the widest vector, and the number of vector registers.
        l1, l2, l3: bytes of the data caches of a core, the smallest of all cores; l3 is 0 without a third level.
        bf16: one instruction adds two products of bfloat16 (AVX512-BF16), and Halide emits it.
        vnni: one instruction adds products of 8-bit integers.
        amx: it multiplies tiles of bfloat16 and 8-bit integers in a separate unit. oneDNN uses it; Halide does not.
        isa: the instruction set that code keeps to, a key of `INSTRUCTION_SETS`; "" for all that the machine has.
        speeds: how long its work takes; None: as calibration measures this machine.
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
    isa: str = ""
    speeds: Speeds | None = None

    def limited(self, isa: str) -> "Cpu":
        """The same processor as code sees it that keeps to an instruction set below its own."""
        known = INSTRUCTION_SETS[isa]
        lanes, registers = min(self.lanes, known.lanes), min(self.registers, known.registers)
        return replace(self, lanes=lanes, registers=registers, bf16=False, vnni=False, amx=False, isa=isa)


@functools.cache
def this_cpu(isa: str | None = None) -> Cpu:
    """The processor of this process, without its speeds: kernels are bound to a calibrated one.

    Args:
        isa: the instruction set to keep to, "" for all; default: `LEANCONV_MAX_CPU_ISA`.
    Raises: BadInput for an instruction set that it has not.
    """
    root = Path("/")
    names, flags = cpuinfo(root)
    isa = check(mask(), flags) if isa is None else check(isa, flags, "isa")
    lanes, bf16 = _vectors(flags)
    sizes = caches(root, usable_cores())
    l1, l2 = (sizes[0] or _configured("SC_LEVEL1_DCACHE_SIZE")), (sizes[1] or _configured("SC_LEVEL2_CACHE_SIZE"))
    found = Cpu(
        vendor=names.get("vendor_id") or names.get("CPU implementer", ""),
        lanes=lanes,
        registers=16 if lanes == 8 else 32,
        l1=l1 or L1,
        l2=l2 or L2,
        l3=sizes[2],
        bf16=bf16,
        vnni=bool({"avx512_vnni", "avx_vnni", "asimddp"} & flags),
        amx=has_amx(),
    )
    return found.limited(isa) if isa else found


def _vectors(flags: frozenset[str]) -> tuple[int, bool]:
    """Lanes of the widest vector, and bf16, as Halide compiles for this machine if it is installed."""
    try:
        hl = halide()
    except MissingExtra:
        return (16 if "avx512f" in flags else 8 if "avx" in flags else 4), False
    target: Any = hl.get_host_target()
    pairs = (getattr(hl.TargetFeature, name) for name in ("AVX512_Zen4", "AVX512_SapphireRapids"))
    return int(target.natural_vector_size(hl.Float(32))), any(map(target.has_feature, pairs))


def usable_cores() -> frozenset[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpuinfo(root: Path = Path("/")) -> tuple[dict[str, str], frozenset[str]]:
    """The fields that Linux reports for the first core, and its features (x86, Arm); empty elsewhere."""
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
    """Bytes of the data caches of levels 1 to 3, the smallest of the cores; 0 if not reported."""
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
    """`"48K"` -> 49152; 0 for other text."""
    parts = re.fullmatch(r"(\d{1,9})([KMG]?)", size)
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[parts[2]] if parts else 0


def _configured(name: str) -> int:
    try:
        return max(0, os.sysconf(name))
    except (ValueError, OSError, AttributeError):
        return 0
