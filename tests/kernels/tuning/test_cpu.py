"""What is read of a processor, on machines that say much, little or nonsense; and that each described one computes."""

import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from leanconv.kernels.cpu import Target, bind
from leanconv.kernels.cpu.pipelines import frontend
from leanconv.kernels.cpu.tuning import cpu as room
from leanconv.kernels.cpu.tuning.cpu import L1, L2, Cpu, caches, cpuinfo, this_cpu, usable_cores
from leanconv.kernels.cpu.tuning.instructions import INSTRUCTION_SETS, runnable
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.pool import MaxPool, max_pool
from leanconv.ops.separable import Separable, Stencil, separable
from leanconv.ops.upsample import Upsample, upsample
from tests.cpus import CPUS
from tests.kernels.tolerance import DTYPES, assert_no_worse, weights_of


def machine(root, cores, info=""):
    """A made /proc and /sys: of each core a list of (level, type, size)."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(info)
    for core, listed in cores.items():
        for index, values in enumerate(listed):
            place = root / f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
            place.mkdir(parents=True)
            for name, value in zip(("level", "type", "size"), values, strict=True):
                if value is not None:
                    (place / name).write_text(f"{value}\n")
    return root


P = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "480M")]
SAID = {
    "a server": ({0: P, 1: P}, (48 << 10, 2 << 20, 480 << 20)),
    "cores of two kinds": ({0: P, 1: [("1", "Data", "32K"), ("2", "Unified", "1M")]}, (32 << 10, 1 << 20, 480 << 20)),
    "no caches": ({}, (0, 0, 0)),
    "sizes of nothing": ({0: [("1", "Data", "0K"), ("2", "Unified", "0"), ("3", "Unified", "0K")]}, (0, 0, 0)),
    "one that says nothing": ({0: P, 1: [("1", "Data", None), ("2", None, "1M")]}, (48 << 10, 2 << 20, 480 << 20)),
    "nonsense": ({0: [("1", "Data", "many"), ("2", "Unified", "-1"), ("9", "Unified", "1K")]}, (0, 0, 0)),
    "a fourth level": ({0: [*P, ("4", "Unified", "1G")]}, (48 << 10, 2 << 20, 480 << 20)),
    "other units": ({0: [("1", "Data", "32768"), ("2", "Unified", "1M")]}, (32 << 10, 1 << 20, 0)),
}


@pytest.mark.parametrize("kind", SAID)
def test_caches(kind, tmp_path):
    """The least of the cores that may be used; 0 where nothing says."""
    cores, sizes = SAID[kind]
    assert caches(machine(tmp_path, cores), [0, 1]) == sizes


def test_cores_that_may_not_be_used_do_not_count(tmp_path):
    root = machine(tmp_path, {0: P, 1: [("1", "Data", "32K")]})
    assert caches(root, [0])[0] == 48 << 10
    assert usable_cores() <= set(range(os.cpu_count()))


def test_what_a_processor_says_of_itself(tmp_path):
    intel = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    names, flags = cpuinfo(machine(tmp_path, {}, intel))
    assert (names["vendor_id"], flags) == ("GenuineIntel", {"fpu", "avx2", "fma"})
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nFeatures : fp asimd asimddp\nCPU implementer : 0x41\n")
    assert cpuinfo(tmp_path) == (
        {"processor": "0", "Features": "fp asimd asimddp", "CPU implementer": "0x41"},
        {"fp", "asimd", "asimddp"},
    )
    (tmp_path / "proc/cpuinfo").write_bytes(b"\xff\xfe: \xff\nno colon\n\n")
    assert cpuinfo(tmp_path)[1] == frozenset()
    assert cpuinfo(tmp_path / "nowhere") == ({}, frozenset())


GONE = ModuleNotFoundError("No module named 'halide'", name="halide")
BROKEN = ImportError("libHalide.so.21: version `GLIBC_2.38' not found")


@pytest.mark.parametrize("error", [None, GONE, BROKEN], ids=["halide", "without halide", "a halide that is broken"])
def test_this_machine_is_described_whatever_it_does_not_say(error, monkeypatch):
    """No /proc, no caches in /sys, none in the system's configuration, no word of PyTorch's on a matrix unit."""
    monkeypatch.setattr(room, "cpuinfo", lambda root: ({}, frozenset()))
    monkeypatch.setattr(room, "caches", lambda root, cores: (0, 0, 0))
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    if error is not None:
        finder = SimpleNamespace(find_spec=Mock(side_effect=error))
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        monkeypatch.delitem(sys.modules, "halide", raising=False)
        monkeypatch.setattr(room, "halide", frontend.halide.__wrapped__)
    found = this_cpu.__wrapped__()
    assert (found.vendor, found.l1, found.l2, found.l3, found.amx, found.vnni) == ("", L1, L2, 0, False, False)
    assert found.lanes in (4, 8, 16)
    assert found.registers in (16, 32)


def test_this_machine_is_read_once():
    assert this_cpu() is this_cpu()
    assert isinstance(this_cpu(), Cpu)
    assert hash(this_cpu()) == hash(replace(this_cpu()))


STAGE = (Stencil(0, 24, (3, 3), padding=(1, 1, 1, 1), bias=True, activation="relu"),)
AROUND = (1, 1, 1, 1)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.usefixtures("halide")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*CPUS, *INSTRUCTION_SETS])
def test_what_is_chosen_for_any_processor_computes_the_same(name, dtype):
    """Compiled for this machine, scheduled for that one; or for this machine with fewer instructions."""
    if name in INSTRUCTION_SETS and name not in runnable(cpuinfo()[1]):
        pytest.skip(f"this machine has no {name}")
    target = Target(CPUS[name] if name in CPUS else this_cpu(name))
    mobile = Separable((24,), (STAGE,), 20, bias=True, average=True)
    mixed = Grouped((24,), 16, (3, 3), padding=AROUND, groups=2, pointwise=True)
    alone = Separable((24,), (STAGE,))
    cases = [
        (separable, mobile, weights_of(mobile)),
        (separable, alone, weights_of(alone)),
        (grouped, mixed, [torch.randn(16, 12, 3, 3), torch.randn(16, 24, 1, 1)]),
        (upsample, Upsample((24,), 5), [torch.randn(24, 5, 2, 2)]),
    ]
    x = torch.randn(2, 24, 14, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    for op, form, weights in cases:
        short = [w.to(dtype) for w in weights]
        y, eager = bind(form, short, target)([x])[0], op([x], short, form)[0]
        exact = op([x.double()], [w.double() for w in short], form)[0]
        assert_no_worse(y, eager, exact, dtype=dtype)
    assert torch.equal(bind(MaxPool(24), [], target)(x)[0], max_pool(x, MaxPool(24))[0])
    blend, others = GatedSum((7,), 20), [(torch.randn(20, 7) / 7).to(dtype)]
    y = torch.randn(2, 31, 9, 8).to(dtype)
    own = [w.to(dtype) for w in weights_of(mobile)]
    a, mean = separable([y[:, :24]], own, mobile)
    eager = gated_pointwise(a, [y[:, 24:]], others, blend, mean)[0]
    a, mean = separable([y[:, :24].double()], [w.double() for w in own], mobile)
    exact = gated_pointwise(a, [y[:, 24:].double()], [w.double() for w in others], blend, mean)[0]
    first, average = bind(mobile, own, target)([y[:, :24]])
    rest = y[:, 24:]
    blended = bind(blend, others, target)(first, [rest], average, [averaged(rest)])[0]
    assert_no_worse(blended, eager, exact, 4.0, dtype)
