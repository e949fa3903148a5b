"""Instruction sets below a machine's own, named as oneDNN names them: code for them leaves the rest unused.

`LEANCONV_MAX_CPU_ISA=avx2` is the mask of a whole process, as `ONEDNN_MAX_CPU_ISA` is of oneDNN. `Cpu.isa` is that of
one target: its kernels keep to it, while the C runtime (copies, averages, gates) is compiled once a process.
"""

import os
from dataclasses import dataclass

import torch

from leanconv.errors import BadInput

VARIABLE = "LEANCONV_MAX_CPU_ISA"


@dataclass(frozen=True)
class InstructionSet:
    """What code may use.

    Attributes:
        needs: the CPU's features (in Linux's spelling) without which it cannot run.
        flags: of the C compiler, in the place of `-march=native`.
        halide: the features of a Halide target, of those that begin with AVX.
        lanes, registers: as in `Cpu`.
    """

    needs: frozenset[str]
    flags: tuple[str, ...]
    halide: frozenset[str]
    lanes: int
    registers: int


_AVX2 = ("avx2", "fma", "f16c", "bmi1", "bmi2")
_AVX512 = ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
_C = {"bmi1": "bmi"}  # where the compiler's name differs from Linux's


def _flags(features: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"-m{_C.get(name, name)}" for name in features)


INSTRUCTION_SETS = {
    "avx2": InstructionSet(frozenset(_AVX2), _flags(_AVX2), frozenset({"AVX", "AVX2"}), 8, 16),
    "avx512_core": InstructionSet(  # without VNNI and bfloat16: the first servers that had AVX-512
        frozenset(_AVX2 + _AVX512),
        _flags(_AVX2 + _AVX512),
        frozenset({"AVX", "AVX2", "AVX512", "AVX512_Skylake"}),
        16,
        32,
    ),
}


def mask() -> str:
    """The variable `LEANCONV_MAX_CPU_ISA`: the name of an instruction set, or "" for all that the machine has."""
    return os.environ.get(VARIABLE, "").strip().lower()


def check(isa: str, features: frozenset[str], said: str = VARIABLE) -> str:
    """The name of an instruction set if a CPU of these features has it; "" is every CPU's.

    `said`: what named it, for the error.
    Raises: BadInput for an unknown name, and for one that asks for more than the machine has.
    """
    if not isa:
        return isa
    unset = "unset" if said == VARIABLE else '""'
    if (known := INSTRUCTION_SETS.get(isa)) is None:
        raise BadInput(f"{said}: unknown instruction set {isa!r}; it may be {', '.join(INSTRUCTION_SETS)}, or {unset}")
    if lacking := sorted(known.needs - features):
        raise BadInput(
            f"{said}: {isa!r} asks for more than this machine has: no {', '.join(lacking)}; "
            f"it may be {', '.join(runnable(features)) or f'{unset} only'}"
        )
    return isa


def runnable(features: frozenset[str]) -> list[str]:
    """The instruction sets that a CPU of these features has."""
    return [name for name, each in INSTRUCTION_SETS.items() if each.needs <= features]


def has_amx() -> bool:
    """Whether the CPU has AMX, and the system lets this process use it: PyTorch asks both."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
