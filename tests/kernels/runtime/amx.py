"""The machine code that the compiler makes of sources with AMX's instructions; no test runs it here."""

import shutil
import subprocess

import pytest

from leanconv.kernels.cpu.compilation.build import RUNTIME, compiler

KNOWS = "#if !__has_include(<amxbf16intrin.h>) && !__has_include(<amxintrin.h>)\n#error\n#endif\n"


def machine_code(source, folder, *flags):
    """The disassembled object of a C file. Skips where there is no objdump."""
    if not shutil.which("objdump"):
        pytest.skip("objdump is not installed: apt install binutils")
    code = folder / "amx.o"
    command = [compiler(), "-march=native", "-fPIC", *flags, f"-I{RUNTIME}", "-c", str(source), "-o", str(code)]
    assert subprocess.run(command).returncode == 0
    return subprocess.run(["objdump", "-d", str(code)], capture_output=True, text=True, check=True).stdout


def skip_without_amx(text, instruction):
    """Skip where the compiler does not know AMX; the code is then without its instructions."""
    known = subprocess.run([compiler(), "-E", "-x", "c", "-"], input=KNOWS, capture_output=True, text=True)
    if known.returncode:
        assert instruction not in text
        pytest.skip(f"{compiler()} does not know AMX: gcc 11 or clang 12 do")
