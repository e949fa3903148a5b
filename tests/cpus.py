"""Processors that tests speak of, each described: what a test says of a CPU never depends on the one that runs it."""

from dataclasses import replace

from leanconv.kernels import Target, this_cpu
from leanconv.kernels.cpu.tuning.cpu import Cpu

ZEN4 = Cpu(
    "AuthenticAMD",
    lanes=16,
    registers=32,
    l1=32 << 10,
    l2=1 << 20,
    l3=32 << 20,
    bf16=True,
    vnni=True,
    double_pumped=True,
)
SAPPHIRE_RAPIDS = Cpu(
    "GenuineIntel", lanes=16, registers=32, l1=48 << 10, l2=2 << 20, l3=480 << 20, bf16=True, vnni=True, amx=True
)
HASWELL = Cpu("GenuineIntel", lanes=8, registers=16, l1=32 << 10, l2=256 << 10, l3=8 << 20)  # AVX2 alone
NEOVERSE = Cpu("0x41", lanes=4, registers=32, l1=64 << 10, l2=1 << 20, vnni=True)  # Arm
CPUS = {"zen4": ZEN4, "sapphire rapids": SAPPHIRE_RAPIDS, "haswell": HASWELL, "neoverse": NEOVERSE}


def with_cache(l2: int) -> Target:
    """This machine, with a second-level cache of so many bytes: where a test is about the code it runs."""
    return Target(replace(this_cpu(), l2=l2))
