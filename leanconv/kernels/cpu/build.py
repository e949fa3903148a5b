"""From Halide to machine code: ahead of time through the system's compiler and the cache, or in this process alone."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Hashable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.kernels.cpu import cache
from leanconv.kernels.cpu.frontend import halide

_HERE = Path(__file__).parent
_LOCK = threading.RLock()  # Halide's front end is not made for several threads; compiling one kernel twice is a waste


class CannotBuild(LeanconvError, RuntimeError):
    """The system's compiler is there but does not make a library; the message has its last words."""


@functools.lru_cache(1)
def compiler() -> str:
    """The system's C compiler, "" where there is none."""
    named = os.environ.get("CC", "")
    return next((found for found in map(shutil.which, [*named.split()[:1], "cc", "gcc", "clang"]) if found), "")


@functools.lru_cache(1)
def _source() -> str:
    """A hash of all that a kernel's code depends on here: the files of this folder and the versions of the tools."""
    files = sorted(path for path in _HERE.iterdir() if path.suffix in (".py", ".c"))
    content = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    return "\0".join((content, version("halide"), str(halide().get_host_target()), cache.machine(), compiler()))


def _cc(arguments: list[str]) -> None:
    done = subprocess.run([compiler(), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{compiler()} failed: {done.stderr.strip()[-300:]}")


@functools.lru_cache(1)
def runtime() -> ctypes.CDLL | None:
    """The library of runtime.c, built if need be; None without a C compiler.

    OpenMP's functions are left undefined, so that they are those of torch's own threads: kernels and torch share
    one pool, and neither waits for the other's idle threads. Where torch has none, the compiler's OpenMP or one thread.
    """
    if not compiler():
        return None
    with _LOCK:
        source = str(_HERE / "runtime.c")
        flags = ["-O3", "-march=native", "-fPIC", "-shared"]
        for extra, linked in ((["-fopenmp"], []), (["-fopenmp"], ["-fopenmp"]), ([], [])):

            def make(path: Path, extra: list[str] = extra, linked: list[str] = linked) -> None:
                with tempfile.TemporaryDirectory() as folder:
                    code = str(Path(folder) / "runtime.o")
                    _cc([*flags[:3], *extra, "-c", source, "-o", code])
                    _cc(["-shared", code, *linked, "-lm", "-lpthread", "-o", str(path)])

            try:
                path = _entry(f"runtime {extra} {linked}", make)
                library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
            except (OSError, CannotBuild) as error:
                last = error
                continue
            return library
        raise CannotBuild(f"no runtime for the kernels: {last}")


def _entry(what: str, make: Callable[[Path], None]) -> Path:
    return cache.fetch(cache.key(_source(), what), make, cache.folder(cache.default_folder()))


def target(ahead: bool) -> Any:
    """This machine, without the checks that the callers have made; ahead of time without Halide's own runtime too."""
    hl = halide()
    features = ["NoAsserts", "NoBoundsQuery"] + ["NoRuntime"] * ahead
    made = hl.get_host_target()
    for feature in features:
        made = made.with_feature(getattr(hl.TargetFeature, feature))
    return made


Pipeline = Callable[[Any, Any], tuple[Any, list[Any]]]


def kernel(pipeline: Pipeline, core: Hashable, tile: Hashable) -> tuple[int, Any]:
    """The address of the compiled kernel (0 without a compiler) and what must be kept alive, or be called, for it.

    `pipeline(core, tile)` gives the Halide Func and its arguments. In this process each kernel is made once.
    """
    with _LOCK:
        return _kernel(pipeline, core, tile)


@functools.lru_cache(4096)
def _kernel(pipeline: Pipeline, core: Hashable, tile: Hashable) -> tuple[int, Any]:
    library = runtime()
    if library is None:
        out, arguments = pipeline(core, tile)
        return 0, out.compile_to_callable(arguments, target(ahead=False))

    def make(path: Path) -> None:
        out, arguments = pipeline(core, tile)
        with tempfile.TemporaryDirectory() as folder:
            code = str(Path(folder) / "kernel.o")
            out.compile_to_object(code, arguments, "lc_kernel", target(ahead=True))
            _cc(["-O1", "-fPIC", "-shared", str(_HERE / "stub.c"), code, "-lm", "-o", str(path)])

    path = _entry(f"{pipeline.__module__} {core!r} {tile!r}", make)
    loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    loaded.lc_attach(library.lc_malloc, library.lc_free)
    return ctypes.cast(loaded.lc_kernel_argv, ctypes.c_void_p).value or 0, loaded
