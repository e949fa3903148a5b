"""Whether the kernels can run on this machine, and how they are compiled and kept."""

import platform
import warnings

from leanconv.errors import MissingExtra
from leanconv.extras import installed
from leanconv.kernels.cpu.compilation import build, cache
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.tuning.cpu import cpuinfo, this_cpu
from leanconv.kernels.cpu.tuning.instructions import VARIABLE, runnable


def why_not() -> str:
    """Why the kernels cannot run here, with the way to get them; "" where they can."""
    if not installed("halide"):
        return "halide is not installed: pip install 'leanconv[cpu]'"
    if platform.system() == "Windows":
        return "the cache of compiled kernels needs owners and modes of POSIX; run under WSL"
    if platform.machine().lower() not in ("x86_64", "amd64", "arm64", "aarch64"):
        return f"no schedules for {platform.machine()}"
    try:
        halide()
    except MissingExtra as error:
        return str(error)
    return ""


def instructions() -> str:
    """Which instructions kernels may use, and where that was said. Raises BadInput for more than the CPU has."""
    if this_cpu().isa:
        return f"up to {this_cpu().isa}, because {VARIABLE} says so"
    known = runnable(cpuinfo()[1])
    return "all that the CPU has" + (f"; {VARIABLE} limits them to one of {', '.join(known)}" if known else "")


def status() -> tuple[str, str]:
    """Whether the kernels run here; how they are compiled and where they are kept, or why they do not run."""
    if reason := why_not():
        return "no", f"{reason}; until then PyTorch's own run"
    if not build.compiler():
        return "yes", "compiled in each process, one thread: no C compiler to keep kernels; apt install gcc"
    wanted = cache.default_folder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer says what they would
        kept = next(cache.folders(wanted), None)
    if kept != wanted:
        place = "no folder can hold them; set LEANCONV_CACHE to one" if kept is None else f"in {kept} for this process"
        return "yes", f"compiled in each process, {place} ({cache.reasons()})"
    count, size = cache.usage(kept)
    if reason := cache.shut_reason(kept):
        return "yes", f"{count} kept in {kept}; each process compiles those that are missing there ({reason})"
    return (
        "yes",
        f"linked by {build.compiler()}, kept in {kept}: {count} of them, {size / 2**20:.1f} of {cache.LIMIT >> 20} MiB",
    )
