"""Processors that tests speak of, each described: what a test says of a CPU never depends on the one that runs it."""

from dataclasses import replace

from leanconv.kernels import Target, this_cpu
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.kernels.cpu.tuning.speeds import Speeds

ZEN4 = Cpu(
    "AuthenticAMD",
    lanes=16,
    registers=32,
    l1=32 << 10,
    l2=1 << 20,
    l3=32 << 20,
    bf16=True,
    vnni=True,
    speeds=Speeds(  # half vectors in half the time; one multiply-add on whole ones a clock cycle
        narrow=0.5,
        load=1.0,
        spread=0.9,
        latency=4.0,
        tile=12.0,
        l3_bytes=16.0,
        memory_bytes=12.0,
        strassen=1.2,
        winograd=0.8,
        l1_winograd=0.4,
    ),
)
SAPPHIRE_RAPIDS = Cpu(
    "GenuineIntel",
    lanes=16,
    registers=32,
    l1=48 << 10,
    l2=2 << 20,
    l3=480 << 20,
    bf16=True,
    vnni=True,
    amx=True,
    speeds=Speeds(),
)
HASWELL = Cpu(  # AVX2 alone
    "GenuineIntel", lanes=8, registers=16, l1=32 << 10, l2=256 << 10, l3=8 << 20, speeds=Speeds()
)
NEOVERSE = Cpu("0x41", lanes=4, registers=32, l1=64 << 10, l2=1 << 20, vnni=True, speeds=Speeds())  # Arm
CPUS = {"zen4": ZEN4, "sapphire rapids": SAPPHIRE_RAPIDS, "haswell": HASWELL, "neoverse": NEOVERSE}


def with_cache(l2: int) -> Target:
    """This machine, with a second-level cache of so many bytes: where a test is about the code it runs."""
    return Target(replace(this_cpu(), l2=l2))
