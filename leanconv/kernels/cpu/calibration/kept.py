"""The calibration of this machine: read from the cache of kernels, or measured on first need and kept there.

A process needs it when it binds the first kernel whose target describes no speeds. Then a machine is measured for some
seconds, once for each instruction set, set of usable caches and version of the calibration. One process measures at a
time. The others wait, and take what it found, whole or not; those that start later measure what is still missing.
`LEANCONV_CALIBRATION=off` measures and reads nothing: the speeds are then `Speeds()`, neutral ones.
"""

import functools
import os
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.extras import installed
from leanconv.files import Held, Lock, read_json, write_json
from leanconv.kernels.cpu.compilation import build, cache
from leanconv.kernels.cpu.compilation.permissions import claim
from leanconv.kernels.cpu.tuning.cpu import Cpu, cpuinfo, this_cpu
from leanconv.kernels.cpu.tuning.speeds import BOUNDS, Speeds, checked
from leanconv.kernels.cpu.tuning.target import Target

VARIABLE = "LEANCONV_CALIBRATION"
VERSION = 1  # of what is measured and how the cost model uses it
# CPU seconds of measuring, and seconds on a busy machine: what is not measured by then stays neutral.
LIMIT_S, WALL_S = 10.0, 20.0
PATIENCE_S = 40.0  # of those who wait for another process; its last part may end after its limit
_FOLDER = "calibration"
_lock = threading.Lock()


@dataclass(frozen=True)
class Calibration:
    """The speeds of this machine for one instruction set.

    Attributes:
        speeds: as the cost model uses them; what is not measured is neutral.
        figures: those that are measured, by name.
        source: "measured", or why they are neutral.
        made: Unix time of the measurement, 0.0 without one.
        seconds: CPU time that it took.
        path: the file that keeps it, None without one.
    """

    speeds: Speeds
    source: str
    figures: Mapping[str, float] = field(default_factory=dict)
    made: float = 0.0
    seconds: float = 0.0
    path: Path | None = None

    @property
    def whole(self) -> bool:
        """Whether every figure is measured."""
        return set(self.figures) == set(BOUNDS)

    def __str__(self) -> str:
        if not self.made:
            return f"neutral speeds: {self.source}"
        days = max(0.0, time.time() - self.made) / 86400
        age = f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} h" if days > 1 / 12 else f"{1440 * days:.0f} min"
        lacks = ", ".join(name for name in BOUNDS if name not in self.figures)
        return (
            f"{age} old{f', without {lacks}' * bool(lacks)}, took {self.seconds:.1f} s of CPU time: {self.speeds}; "
            f"in {self.path}"
        )


def calibrated(target: Target) -> Target:
    """The target with the speeds of this machine where it describes none. The first call may take some seconds."""
    if target.cpu.speeds is not None:
        return target
    return replace(target, cpu=replace(target.cpu, speeds=_here(target.cpu.isa).speeds))


def status(isa: str | None = None) -> str:
    """The kept calibration in words, or why there is none; measures nothing."""
    cpu = this_cpu(isa)
    if reason := _why_neutral():
        return str(Calibration(Speeds(), reason))
    shut = _shut()
    try:
        found = _read(_path(cpu))
    except BadInput as error:
        return str(Calibration(Speeds(), f"{shut}; {error}")) if shut else f"will be measured again: {error}"
    if found is None:
        return str(Calibration(Speeds(), shut)) if shut else "not measured yet: the first kernel measures it"
    return str(found)


def pending_s() -> float:
    """Seconds that the first kernel of this process will take for a calibration; 0.0 where the whole of it is there."""
    if _why_neutral() or _shut():
        return 0.0
    try:
        found = _read(_path(this_cpu()))
    except BadInput:  # it is measured again
        return LIMIT_S
    return 0.0 if found is not None and found.whole else LIMIT_S


def _shut() -> str:
    """Why the folder of the cache, which may hold a calibration, takes no new one; "" where it does."""
    reason = cache.shut_reason(cache.default_folder())
    return f"no folder can keep it: {reason}" if reason else ""


def _why_neutral() -> str:
    """Why nothing is measured, "" where it is."""
    if (told := os.environ.get(VARIABLE, "")) == "off":
        return f"{VARIABLE}=off"
    if told not in ("", "on"):
        raise BadInput(f"{VARIABLE} is {told!r}; it may be on or off")
    if not installed("halide"):
        return "halide is not installed"
    if not build.compiler():
        return "no C compiler"
    if (folder := cache.default_folder()) and (reason := claim(folder)):
        return f"no folder can keep it: {reason}"
    return ""


def _path(cpu: Cpu) -> Path:
    """The file of this machine: its name says all that the speeds depend on."""
    names = cpuinfo()[0]
    model = [names.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name", "CPU part")]
    facts = (str(VERSION), *model, cache.machine(), repr(sorted(asdict(replace(cpu, speeds=None)).items(), key=str)))
    return cache.default_folder() / _FOLDER / f"{cache.key(*facts)[:32]}.json"


def _here(isa: str) -> Calibration:
    with _lock:
        return _found(isa)


@functools.lru_cache(4)
def _found(isa: str) -> Calibration:
    """The calibration for an instruction set; "" is the process's own."""
    if reason := _why_neutral():
        return Calibration(Speeds(), reason)
    cpu = this_cpu(isa or None)
    path = _path(cpu)
    before = _kept(path)
    if before is not None and before.whole:
        return before
    if reason := _shut():
        return before or Calibration(Speeds(), reason)
    # Every kernel needs it. Its first build takes longer than others wait for the lock.
    build.runtime()
    with ExitStack() as held:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            held.enter_context(Lock(path.with_suffix(".lock"), "a calibration", patience_s=PATIENCE_S))
        except Held:
            return _kept(path) or Calibration(Speeds(), "another process still measures")
        except OSError:  # no locks here: two processes may measure at once
            pass
        kept = _kept(path)
        if kept is not None and (kept.whole or before is None or kept.made > before.made):
            return kept
        return _measured(cpu, path, kept)


def _kept(path: Path) -> Calibration | None:
    """What the file has; None without it, or where it is damaged: that is said, and it is measured again."""
    try:
        return _read(path)
    except BadInput as error:
        warnings.warn(f"the calibration of this machine is measured again: {error}", stacklevel=2)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None


def _read(path: Path) -> Calibration | None:
    """What the file has; None where there is none. Raises BadInput where it has not what `_measured` writes."""
    if not path.exists():
        return None
    stored = read_json(path, most=1 << 16)
    try:
        made, seconds = float(stored["made"]), float(stored["seconds"])
        if stored["version"] != VERSION or not 0 < made < 1e11 or not 0 <= seconds < 1e6:
            raise ValueError("it is of another version, or of no time")
        figures = checked(stored["speeds"])
        return Calibration(Speeds(**figures), "measured", figures, made, seconds, path)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{path}: {error}") from error


def _measured(cpu: Cpu, path: Path, before: Calibration | None) -> Calibration:
    """Measure what `before` lacks, and keep it."""
    from leanconv.kernels.cpu.calibration.probes import measure  # it binds kernels, which ask this file for speeds

    start = time.thread_time()
    try:
        figures = measure(cpu, LIMIT_S, before.figures if before else {}, wall_s=WALL_S)
    except Exception as error:  # a compiler's, or a kernel's own: it will show again where a kernel is needed
        return before or Calibration(Speeds(), f"the measurement failed: {type(error).__name__}: {error}")
    seconds = time.thread_time() - start + (before.seconds if before else 0.0)
    found = Calibration(Speeds(**figures), "measured", figures, time.time(), seconds, path)
    about = {"cpu": cpuinfo()[0].get("model name", ""), "isa": cpu.isa}
    try:
        write_json(path, {"version": VERSION, "made": found.made, "seconds": seconds, **about, "speeds": figures})
    except BadInput as error:
        warnings.warn(f"the calibration of this machine is not kept: {error}", stacklevel=2)
    return found
