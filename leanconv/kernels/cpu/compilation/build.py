"""From Halide to machine code: ahead of time through the system's compiler and the cache, or in this process alone."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.kernels import limited
from leanconv.kernels.cpu.compilation import cache
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.tuning.cpu import cpuinfo, this_cpu, usable_cores
from leanconv.kernels.cpu.tuning.instructions import INSTRUCTION_SETS, check

_ROOMS = Path(__file__).parent.parent
PIPELINES, RUNTIME = _ROOMS / "pipelines", _ROOMS / "runtime"
_PACKAGE = _ROOMS.parents[1]
# Outside `pipelines`: the forms that pipelines read, and the output sizes that they compute.
_FORMS = (_PACKAGE / "ops" / "forms.py", _PACKAGE / "ops" / "grouped.py", _PACKAGE / "spec.py")
# The parts of the runtime: the C files of each library, and functions that it must have. A part is built when it is
# first asked for. Each has scratch memory of its own.
_PARTS = {
    "launch": ("runtime scratch gates transpose", "lc_sizes lc_run lc_batch lc_gates lc_copy lc_malloc lc_free"),
    "tiles": ("tiles_amx tiles_pairs tiles_emulated scratch", "lc_tiles_emulated"),
    "int8": (
        "int8 int8_maps int8_product int8_stencil int8_tiles_amx int8_tiles_emulated scratch",
        "lc_int8 lc_int8_size lc_int8_vector lc_int8_has_amx",
    ),
    "training": (
        "hetconv separable_branch depthwise gated_sum normalized_gated_sum batch_norm_act pointwise scratch",
        "lc_branch lc_depthwise lc_hetconv lc_pointwise lc_training_size",
    ),
}
_STUB_FLAGS = ("-O1", "-fPIC")
_LOCK = threading.RLock()  # Halide's front end is not thread-safe, and no kernel should be compiled twice


_alone: list[str] = []  # why kernels are compiled in this process alone
_lacking: dict[str, str] = {}  # parts of the runtime that could not be built, and why
_hung: dict[str, str] = {}  # compilers that did not end, and what to say of them


class CannotBuild(LeanconvError, RuntimeError):
    """The system's compiler produces no library; the message ends with its output."""


@functools.lru_cache(1)
def compiler() -> str:
    """The system's C compiler, "" where there is none."""
    named = os.environ.get("CC", "")
    return next((found for found in map(shutil.which, [*named.split()[:1], "cc", "gcc", "clang"]) if found), "")


@functools.lru_cache(4)
def _kernel_source(isa: str) -> str:
    """What a kernel's machine code depends on, besides core and tile: pipelines, forms, tools, flags, machine."""
    files = [*PIPELINES.glob("*.py"), PIPELINES / "stub.c", *_FORMS]
    return _hashed(files, (version("halide"), str(target(True, isa)), _STUB_FLAGS))


@functools.lru_cache(len(_PARTS))
def _runtime_source(part: str) -> str:
    """What a library of the runtime depends on."""
    files = [*(RUNTIME / f"{name}.c" for name in _PARTS[part][0].split()), *RUNTIME.glob("*.h")]
    return _hashed(files, (*c_flags(this_cpu().isa), *_flags_of("int8")))


def c_flags(isa: str) -> tuple[str, ...]:
    """The C compiler's flags for an instruction set; for "" all that this machine has."""
    machine = (*INSTRUCTION_SETS[isa].flags, "-mtune=native") if isa else ("-march=native",)
    return ("-O3", *machine, "-fPIC")


def _hashed(files: Iterable[Path], tools: tuple[object, ...]) -> str:
    content = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(files))).hexdigest()
    return "\0".join((content, repr(tools), cache.machine(), compiler()))


def _cc(arguments: list[str], folder: Path) -> None:
    _cc_all([arguments], folder)


def _cc_all(calls: Sequence[list[str]], folder: Path) -> None:
    """Run the compiler with each list of arguments, on all cores; `folder` takes what it writes on the way.

    Raises: CannotBuild where it fails or hangs. One that has hung is not asked again in this process.
    """
    if compiler() in _hung:
        raise CannotBuild(_hung[compiler()])
    commands, environment = [[compiler(), *arguments] for arguments in calls], os.environ | {"TMPDIR": str(folder)}
    try:
        found = limited.run_all(commands, environment, at_once=len(usable_cores()))
    except subprocess.TimeoutExpired as error:
        _hung[compiler()] = f"{compiler()} did not end within {error.timeout:g} s"
        raise CannotBuild(_hung[compiler()]) from error
    except OSError as error:
        raise CannotBuild(f"{compiler()} does not run: {error.strerror}") from error
    for arguments, done in zip(calls, found, strict=True):
        if done.returncode:
            words = " ".join(done.stderr.split())[-300:]
            raise CannotBuild(f"{compiler()} failed: {words or f'exit status {done.returncode}'}")
        made = Path(arguments[arguments.index("-o") + 1])
        if not made.is_file() or not made.stat().st_size:
            raise CannotBuild(f"{compiler()} wrote nothing to {made.name}")


def _flags_of(name: str) -> list[str]:
    """Integers go with float32 that is rounded step by step: no sum takes a product that was not rounded."""
    return ["-ffp-contract=off"] if name.startswith("int8") else []


@functools.lru_cache(len(_PARTS) + 1)
def runtime(part: str = "launch") -> ctypes.CDLL | None:
    """A library of the C files in `runtime/`, built if need be; None without a C compiler or a folder for it.

    Every part needs the first one. `why_no` says why a part is not there.

    OpenMP's functions are left undefined, so that they are those of torch's own threads: kernels and torch share
    one pool, and neither waits for the other's idle threads. Where torch has none, the compiler's OpenMP or one thread.
    """
    if not compiler() or (part != "launch" and runtime() is None):
        return None
    files, functions = (words.split() for words in _PARTS[part])
    with _LOCK:
        last = ""
        for extra, linked in ((["-fopenmp"], []), (["-fopenmp"], ["-fopenmp"]), ([], [])):

            def make(path: Path, extra: list[str] = extra, linked: list[str] = linked) -> None:
                codes = {name: str(path.with_name(f"{path.stem}-{name}.o")) for name in files}
                flags = (*c_flags(this_cpu().isa), *extra)
                calls = [
                    [*flags, *_flags_of(name), "-c", str(RUNTIME / f"{name}.c"), "-o", code]
                    for name, code in codes.items()
                ]
                _cc_all(calls, path.parent)
                _cc(["-shared", *codes.values(), *linked, "-lm", "-lpthread", "-o", str(path)], path.parent)

            try:
                return _library(cache.key(_runtime_source(part), f"{extra} {linked}"), make, functions)
            except CannotBuild as error:
                last = str(error)
        _lacking[part] = last
        if part == "launch":
            _in_process_only(last)
        return None


def why_no(part: str) -> str:
    """Why a part of the runtime is not there; "" where it is."""
    if runtime(part) is not None:
        return ""
    return _lacking.get(part) or obstacle() or "no C compiler builds them: apt install gcc"


def c_library(source: Path, isa: str, needs: Sequence[str]) -> ctypes.CDLL | None:
    """The library of one C file, compiled for an instruction set; None without a compiler, or a folder for it.

    Raises: CannotBuild where the build fails.
    """
    if not compiler():
        return None

    def make(path: Path) -> None:
        _cc(["-shared", *c_flags(isa), str(source), "-o", str(path)], path.parent)

    with _LOCK:
        return _library(cache.key(_hashed([source], c_flags(isa)), source.name), make, needs)


def _library(name: str, make: Callable[[Path], None], needs: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The library with the functions that it `needs`, from the first folder that can keep it and run it.

    None where no folder can. A folder where something blocks this one entry is skipped; it serves for all others.
    Raises: CannotBuild where the build fails, or the library lacks a function in every folder.
    """
    for where in cache.folders(cache.default_folder()):
        try:
            return _opened(name, make, where, needs)
        except cache.Blocked:
            continue
        except OSError as error:
            if "symbol" in str(error):
                raise CannotBuild(str(error)) from error
            cache.give_up(where, error)
    _in_process_only(cache.reasons())
    return None


def _opened(name: str, make: Callable[[Path], None], where: Path, needs: Sequence[str] = ()) -> ctypes.CDLL:
    """The loaded library. One that cannot be loaded is removed and built once more.

    Raises: CannotBuild where the second one cannot be loaded either; OSError where the folder does not serve.
    """
    reason = ""
    for _ in range(2):
        path = cache.fetch(name, make, where)
        try:
            lib = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        except OSError as error:
            if "symbol" in str(error) or _forbidden(error):
                raise
            reason = str(error)
        else:
            if not (lacking := [function for function in needs if not hasattr(lib, function)]):
                return lib
            reason = f"it lacks {', '.join(lacking)}"
        path.unlink(missing_ok=True)  # unless another process has just tidied up
    raise CannotBuild(f"{compiler()} made no library: {reason}")


def _forbidden(error: OSError) -> bool:
    """Whether the file system forbids programs."""
    return "map segment" in str(error) or "not permitted" in str(error)


@functools.lru_cache(1)
def _in_process_only(why: str) -> None:
    _alone.append(why)
    warnings.warn(f"kernels are compiled in this process alone, slowly, and run in one thread ({why})", stacklevel=2)


def obstacle() -> str:
    """Why kernels of this process are slower or compiled more often than they could be; "" if all is well."""
    if _alone:
        return f"kernels compiled in this process alone, for one thread ({_alone[-1]})"
    return f"kernels compiled in each process ({cache.reasons()})" if cache.reasons() else ""


def target(ahead: bool, isa: str) -> Any:
    """This machine, without checks that the callers do; ahead of time also without Halide's own runtime.

    Args:
        isa: the instruction set that the code keeps to, "" for all that this machine has.
    Raises: BadInput for one that it has not.
    """
    hl = halide()
    features = ["NoAsserts", "NoBoundsQuery"] + ["NoRuntime"] * ahead
    made = hl.get_host_target()
    if check(isa, cpuinfo()[1]):
        for name in dir(hl.TargetFeature):
            if name.startswith("AVX") and name not in INSTRUCTION_SETS[isa].halide:
                made = made.without_feature(getattr(hl.TargetFeature, name))
    for feature in features:
        made = made.with_feature(getattr(hl.TargetFeature, feature))
    return made


def _stub(path: Path) -> None:
    """The object that is linked into every kernel. Compiled once, it halves the time of each link."""
    _cc([*_STUB_FLAGS, "-c", str(PIPELINES / "stub.c"), "-o", str(path)], path.parent)


Pipeline = Callable[[Any, Any], tuple[Any, list[Any]]]
# A kernel to compile, and for which instruction set: `pipeline(core, tile)` gives the Halide Func and its arguments.
Job = tuple[Pipeline, Hashable, Hashable, str]
_thread = threading.local()


@contextmanager
def listed() -> Iterator[list[Job]]:
    """Inside, this thread compiles nothing but lists what it would compile. Kernels prepared inside cannot run."""
    jobs: list[Job] = []
    with _set("jobs", jobs):
        yield jobs


@contextmanager
def compiled_for(isa: str) -> Iterator[None]:
    """Inside, this thread compiles kernels for that instruction set; "" for all that the machine has."""
    with _set("isa", isa):
        yield


@contextmanager
def not_listed() -> Iterator[None]:
    """Inside, this thread compiles what it asks for, even inside `listed`."""
    with _set("jobs", None):
        yield


@contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    """A setting of this thread; afterwards what it was before."""
    before = vars(_thread).copy()
    setattr(_thread, name, value)
    try:
        yield
    finally:
        vars(_thread).clear()
        vars(_thread).update(before)


def kernel(pipeline: Pipeline, core: Hashable, tile: Hashable, isa: str | None = None) -> tuple[int, Any]:
    """The address of the compiled kernel (0 without a compiler) and what must be kept alive, or be called, for it.

    `pipeline(core, tile)` gives the Halide Func and its arguments. A process compiles or loads each kernel once.

    Args:
        isa: the instruction set (default: that of `compiled_for`, else this process's).
    """
    if isa is None:
        isa = getattr(_thread, "isa", None) or this_cpu().isa
    if (jobs := getattr(_thread, "jobs", None)) is not None:
        jobs.append((pipeline, core, tile, isa))
        return 0, None
    with _LOCK:
        return _kernel(pipeline, core, tile, isa)


def name_of(job: Job) -> str:
    """The name of its entry in the cache."""
    return cache.key(_kernel_source(job[3]), _words(job))


def _words(job: Job) -> str:
    pipeline, core, tile, _ = job
    return f"{pipeline.__module__}.{pipeline.__name__} {core!r} {tile!r}"


def make(job: Job, path: Path) -> None:
    """Compile a kernel to a library at `path`, in a folder for drafts below that of the cache."""
    pipeline, core, tile, isa = job
    out, arguments = pipeline(core, tile)
    code = str(path.with_suffix(".o"))
    out.compile_to_object(code, arguments, "lc_kernel", target(True, isa))
    stub = cache.fetch(cache.key(_kernel_source(isa), "stub"), _stub, path.parent.parent)
    _cc(["-shared", str(stub), code, "-lm", "-o", str(path)], path.parent)


@functools.lru_cache(4096)
def _kernel(pipeline: Pipeline, core: Hashable, tile: Hashable, isa: str) -> tuple[int, Any]:
    job, loaded, lib = (pipeline, core, tile, isa), None, runtime()
    if lib is not None:
        try:
            loaded = _library(name_of(job), functools.partial(make, job), ("lc_attach", "lc_kernel_argv"))
        except CannotBuild as error:
            _in_process_only(str(error))
    if loaded is None or lib is None:
        out, arguments = pipeline(core, tile)
        return 0, out.compile_to_callable(arguments, target(False, isa))
    loaded.lc_attach(lib.lc_malloc, lib.lc_free)
    return ctypes.cast(loaded.lc_kernel_argv, ctypes.c_void_p).value or 0, loaded
