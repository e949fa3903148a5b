"""From Halide to machine code: ahead of time through the system's compiler and the cache, or in this process alone."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Callable, Hashable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.kernels.cpu import cache
from leanconv.kernels.cpu.frontend import halide

_HERE = Path(__file__).parent
_RUNTIME = ("runtime", "scratch", "gates", "transpose")  # what every kernel stands on, in C
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
    files = sorted(path for path in _HERE.iterdir() if path.suffix in (".py", ".c", ".h"))
    content = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    return "\0".join((content, version("halide"), str(halide().get_host_target()), cache.machine(), compiler()))


def _cc(arguments: list[str], folder: Path) -> None:
    """Run the compiler; `folder` takes what it writes on the way."""
    environment = os.environ | {"TMPDIR": str(folder)}
    try:
        done = subprocess.run([compiler(), *arguments], capture_output=True, text=True, env=environment)
    except OSError as error:
        raise CannotBuild(f"{compiler()} does not run: {error.strerror}") from error
    if done.returncode:
        raise CannotBuild(f"{compiler()} failed: {' '.join(done.stderr.split())[-300:]}")


@functools.lru_cache(1)
def runtime() -> ctypes.CDLL | None:
    """The library of `_RUNTIME`, built if need be; None where there is no C compiler, or no folder for what it makes.

    OpenMP's functions are left undefined, so that they are those of torch's own threads: kernels and torch share
    one pool, and neither waits for the other's idle threads. Where torch has none, the compiler's OpenMP or one thread.
    """
    if not compiler():
        return None
    with _LOCK:
        flags = ["-O3", "-march=native", "-fPIC"]
        last = ""
        for extra, linked in ((["-fopenmp"], []), (["-fopenmp"], ["-fopenmp"]), ([], [])):

            def make(path: Path, extra: list[str] = extra, linked: list[str] = linked) -> None:
                codes = [str(path.with_name(f"{path.stem}-{name}.o")) for name in _RUNTIME]
                for name, code in zip(_RUNTIME, codes, strict=True):
                    _cc([*flags, *extra, "-c", str(_HERE / f"{name}.c"), "-o", code], path.parent)
                _cc(["-shared", *codes, *linked, "-lm", "-lpthread", "-o", str(path)], path.parent)

            try:
                return _library(f"runtime {extra} {linked}", make)
            except CannotBuild as error:
                last = str(error)
        _in_process_only(last)
        return None


def _library(what: str, make: Callable[[Path], None]) -> ctypes.CDLL | None:
    """The library, from the first folder that can keep it and run it; None where there is none.

    Raises: CannotBuild where it cannot be made, or lacks a function wherever it lies.
    """
    name = cache.key(_source(), what)
    for where in cache.folders(cache.default_folder()):
        try:
            return _opened(name, make, where)
        except OSError as error:
            if "symbol" in str(error):
                raise CannotBuild(str(error)) from error
            cache.give_up(where, error)
    _in_process_only(cache.reasons())
    return None


def _opened(name: str, make: Callable[[Path], None], where: Path) -> ctypes.CDLL:
    path = cache.fetch(name, make, where)
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError:
        if path.exists():
            raise
        return ctypes.CDLL(str(cache.fetch(name, make, where)), mode=os.RTLD_NOW)  # another process just tidied up


@functools.lru_cache(1)
def _in_process_only(why: str) -> None:
    warnings.warn(f"kernels are compiled in this process alone, slowly, and run in one thread ({why})", stacklevel=2)


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
    def make(path: Path) -> None:
        out, arguments = pipeline(core, tile)
        code = str(path.with_suffix(".o"))
        out.compile_to_object(code, arguments, "lc_kernel", target(ahead=True))
        _cc(["-O1", "-fPIC", "-shared", str(_HERE / "stub.c"), code, "-lm", "-o", str(path)], path.parent)

    loaded, lib = None, runtime()
    if lib is not None:
        try:
            loaded = _library(f"{pipeline.__module__}.{pipeline.__name__} {core!r} {tile!r}", make)
        except CannotBuild as error:
            _in_process_only(str(error))
    if loaded is None or lib is None:
        out, arguments = pipeline(core, tile)
        return 0, out.compile_to_callable(arguments, target(ahead=False))
    loaded.lc_attach(lib.lc_malloc, lib.lc_free)
    return ctypes.cast(loaded.lc_kernel_argv, ctypes.c_void_p).value or 0, loaded
