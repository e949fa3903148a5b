"""Instruction sets below the machine's own: what may be asked for, and that the code keeps to it."""

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.kernels import Target, this_cpu
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.tuning.cpu import cpuinfo
from leanconv.kernels.cpu.tuning.instructions import INSTRUCTION_SETS, check, runnable
from leanconv.ops.separable import Separable
from leanconv.ops.separable import separable as reference
from tests.cpus import ZEN4
from tests.kernels.tolerance import assert_no_worse

AVX2 = INSTRUCTION_SETS["avx2"].needs
AVX512 = INSTRUCTION_SETS["avx512_core"].needs


def test_no_more_than_the_machine_has():
    assert runnable(AVX512) == ["avx2", "avx512_core"]
    assert (runnable(AVX2), runnable(frozenset())) == (["avx2"], [])
    assert [check(isa, AVX512) for isa in ("", "avx2", "avx512_core")] == ["", "avx2", "avx512_core"]
    assert check("", frozenset()) == ""
    with pytest.raises(
        BadInput, match=r"'avx512_core' asks for more than this machine has: no avx512bw.*; it may be avx2"
    ):
        check("avx512_core", AVX2)
    with pytest.raises(BadInput, match=r"asks for more than this machine has.* unset only"):
        check("avx2", frozenset({"asimd"}))
    with pytest.raises(BadInput, match="unknown instruction set 'sse9'; it may be avx2, avx512_core, or unset"):
        check("sse9", AVX512)


@pytest.mark.parametrize("isa", ["nonsense", "avx512_core"])
def test_an_argument_is_not_blamed_on_the_variable(isa, monkeypatch):
    monkeypatch.setattr("leanconv.kernels.cpu.tuning.cpu.cpuinfo", lambda *_: ({}, AVX2))
    this_cpu.cache_clear()
    try:
        with pytest.raises(BadInput, match=rf"^isa: .*'{isa}'"):
            this_cpu(isa)
    finally:
        this_cpu.cache_clear()
    with pytest.raises(BadInput, match=r'isa: .*or ""$'):
        check("nonsense", AVX2, "isa")


def test_what_a_masked_processor_has():
    seen = ZEN4.limited("avx2")
    assert (seen.lanes, seen.registers, seen.bf16, seen.vnni, seen.amx, seen.isa) == (
        8,
        16,
        False,
        False,
        False,
        "avx2",
    )
    assert (seen.l1, seen.l2, seen.l3, seen.vendor) == (ZEN4.l1, ZEN4.l2, ZEN4.l3, ZEN4.vendor)
    assert (ZEN4.limited("avx512_core").lanes, ZEN4.limited("avx512_core").bf16) == (16, False)


@functools.cache
def has(isa):
    return isa in runnable(cpuinfo()[1])


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request, halide):
    if not has(request.param):
        pytest.skip(f"this machine has no {request.param}")
    return request.param


def test_the_halide_target_and_the_flags(isa):
    target = str(build.target(True, isa))
    assert "avx2" in target
    assert re.findall(r"avx512\w*|avx10\w*|avxvnni", target) == ([] if isa == "avx2" else ["avx512", "avx512_skylake"])
    assert "-march=native" not in build.c_flags(isa)
    if target != str(build.target(True, "")):  # where the machine has more
        assert build._kernel_source(isa) != build._kernel_source("")


def test_a_target_that_the_machine_has_not_compiles_nothing(halide, monkeypatch):
    monkeypatch.setattr(build, "cpuinfo", lambda: ({}, frozenset({"asimd"})))
    with pytest.raises(BadInput, match="asks for more than this machine has"):
        build.target(True, "avx2")


def wide_vectors(path):
    """The number of instructions on 512-bit registers, or with AVX-512's masks or upper 16 registers."""
    listing = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"%zmm|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b", listing))


@pytest.fixture
def disassembler():
    if shutil.which("objdump") is None or not build.compiler():
        pytest.skip("needs objdump and a C compiler")


@pytest.mark.slow
@pytest.mark.usefixtures("halide", "disassembler")
def test_the_kernels_of_a_target_keep_to_it(tmp_path, monkeypatch):
    """Both in one process: the masked kernel has no wide vector, the other one has."""
    if not has("avx512_core"):
        pytest.skip("this machine has nothing to mask")
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kernels"))
    form, weights = Separable((40,), (), 24), [torch.randn(24, 40)]
    x = torch.randn(2, 40, 7, 9).contiguous(memory_format=torch.channels_last)
    exact = reference([x.double()], [weights[0].double()], form)[0]
    eager, counts = reference([x], weights, form)[0], []
    for isa in ("avx2", ""):
        with build.listed() as jobs:
            bind(form, weights, Target(this_cpu(isa))).prepared(x, None, None)
        assert {job[3] for job in jobs} == {isa}
        assert_no_worse(bind(form, weights, Target(this_cpu(isa)))([x])[0], eager, exact)
        counts.append(sum(wide_vectors(tmp_path / "kernels" / f"{build.name_of(job)}.so") for job in jobs))
    assert counts[0] == 0
    assert counts[1] > 0


MASKED = """
import torch, leanconv as lc
from leanconv.kernels import this_cpu
torch.set_num_threads(1)
torch.manual_seed(0)
assert (this_cpu().lanes, this_cpu().bf16) == (8, False)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 24, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(24, 24, 3, padding=1, groups=24),
    torch.nn.Conv2d(24, 40, 1), torch.nn.MaxPool2d(2), torch.nn.Conv2d(40, 16, 3, padding=1, groups=4),
).eval()
x = torch.randn(2, 3, 30, 34)
fast = lc.optimize(model, x, engines=["fused"], budget_s=240)
assert any("kernel" in block["times_ms"] for block in fast.choices.to_dict()["blocks"]), fast.choices
torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-4, atol=1e-5)
from leanconv.engine import diagnose
assert "up to avx2, because LEANCONV_MAX_CPU_ISA says so" in str(diagnose()), diagnose()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("halide", "disassembler")
def test_a_masked_process_compiles_nothing_wider(tmp_path):
    """Kernels, their stubs and the C runtime, of a whole network."""
    if not has("avx2"):
        pytest.skip("this machine has no avx2")
    environment = os.environ | {"LEANCONV_CACHE": str(tmp_path / "kernels"), "LEANCONV_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", MASKED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = list((tmp_path / "kernels").glob("*.so"))
    assert len(made) >= 5
    assert sum(map(wide_vectors, made)) == 0


@pytest.mark.parametrize("word", ["sse9", "amx"])
def test_an_unknown_mask_is_an_error_in_every_process(word):
    words = "from leanconv.kernels import this_cpu; this_cpu()"
    environment = os.environ | {"LEANCONV_MAX_CPU_ISA": word}
    done = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True)
    assert done.returncode
    assert f"LEANCONV_MAX_CPU_ISA: unknown instruction set '{word}'; it may be avx2, avx512_core" in done.stderr
