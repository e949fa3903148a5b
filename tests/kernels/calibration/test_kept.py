"""The calibration as a file: kept, read again, refused where it is damaged; when it is measured, and when not."""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from leanconv.errors import BadInput
from leanconv.files import Held
from leanconv.kernels import Target, backend, this_cpu
from leanconv.kernels.cpu.calibration import kept, probes
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.tuning.speeds import BOUNDS, Speeds, checked, within_bounds
from tests.cpus import HASWELL

SEEN = Speeds(narrow=0.5, latency=4.25, strassen=1.5)


@pytest.fixture
def measured(halide, tmp_path, monkeypatch):
    """A cache of its own, and a measurement that only counts its calls."""
    if not build.compiler():
        pytest.skip("needs a C compiler")
    calls = []
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setenv("LEANCONV_CALIBRATION", "on")
    monkeypatch.setattr(probes, "measure", lambda cpu, *_, **__: calls.append(cpu) or SEEN.to_dict())
    kept._found.cache_clear()
    yield calls
    kept._found.cache_clear()


def again():
    """As another process would find it."""
    kept._found.cache_clear()
    return kept.calibrated(Target()).cpu.speeds


def file_of(tmp_path):
    (path,) = (tmp_path / "kernels" / "calibration").glob("*.json")
    return path


def test_measured_once_and_read_by_the_next_process(measured, tmp_path):
    assert backend().calibration_s() == kept.LIMIT_S
    assert backend().facts()["calibration"].startswith("not measured yet")
    assert kept.calibrated(Target()).cpu.speeds == SEEN
    assert kept.calibrated(Target()).cpu == replace(this_cpu(), speeds=SEEN)
    assert again() == SEEN
    assert len(measured) == 1
    assert backend().calibration_s() == 0.0
    said = backend().facts()["calibration"]
    assert said.startswith("0 min old, took 0.0 s of CPU time: narrow 0.5, load 1, spread 1, latency 4.25,"), said
    assert str(file_of(tmp_path)) in said
    start = time.perf_counter()
    again()
    assert time.perf_counter() - start < 0.1, "reading it takes milliseconds"


def test_a_described_processor_is_not_measured(measured):
    assert kept.calibrated(Target(HASWELL)) == Target(HASWELL)
    assert not measured


def test_each_instruction_set_and_machine_has_its_own(measured, monkeypatch):
    paths = {kept._path(replace(this_cpu(), **changed)) for changed in ({}, {"isa": "avx2"}, {"l2": 1 << 18})}
    monkeypatch.setattr(kept, "cpuinfo", lambda: ({"model name": "another"}, frozenset()))
    paths.add(kept._path(this_cpu()))
    monkeypatch.setattr(kept, "VERSION", kept.VERSION + 1)
    paths.add(kept._path(this_cpu()))
    assert len(paths) == 5


GOOD = {"version": kept.VERSION, "made": 1.8e9, "seconds": 3.0, "speeds": SEEN.to_dict()}
DAMAGED = {
    "nothing": "",
    "half of it": json.dumps(GOOD)[:-20],
    "a list": "[1, 2]",
    "deep": "[" * 100_000,
    "huge": '"' + "x" * (1 << 17) + '"',
    "no speeds": json.dumps({name: GOOD[name] for name in GOOD if name != "speeds"}),
    "speeds that are none": json.dumps(GOOD | {"speeds": [1.0]}),
    "another version": json.dumps(GOOD | {"version": kept.VERSION + 1}),
    "a time that is none": json.dumps(GOOD | {"made": math.inf}),
    "a time that no float holds": json.dumps(GOOD | {"made": 10**400}),
    "seconds that no float holds": json.dumps(GOOD | {"seconds": 10**400}),
    "a figure too many": json.dumps(GOOD | {"speeds": SEEN.to_dict() | {"more": 1.0}}),
    "a word": json.dumps(GOOD | {"speeds": SEEN.to_dict() | {"load": "fast"}}),
    "a truth": json.dumps(GOOD | {"speeds": SEEN.to_dict() | {"load": True}}),
    "no number": json.dumps(GOOD | {"speeds": SEEN.to_dict() | {"load": math.nan}}),
    "no core": json.dumps(GOOD | {"speeds": SEEN.to_dict() | {"l3_bytes": 0.0}}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_line_and_measured_again(kind, measured, tmp_path):
    again()
    path = file_of(tmp_path)
    path.write_text(DAMAGED[kind])
    assert backend().facts()["calibration"].startswith("will be measured again: ")
    assert backend().calibration_s() == kept.LIMIT_S
    with pytest.warns(UserWarning, match="calibration of this machine is measured again: .*") as seen:
        assert again() == SEEN
    assert len(seen) == 1
    assert "\n" not in str(seen[0].message)
    assert len(measured) == 2
    assert again() == SEEN
    assert len(measured) == 2


def test_a_pipe_or_a_folder_in_its_place_does_not_hang(measured, tmp_path):
    again()
    path = file_of(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match="is no file but a pipe"):
        assert again() == SEEN
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="no file but a folder|is not kept") as seen:
        assert again() == SEEN
    assert len(seen) == 3  # before and after its lock is held, and where it would be kept
    assert len(measured) == 3


@pytest.mark.parametrize("without", ["off", "halide", "compiler", "folder"])
def test_neutral_speeds_and_the_reason(without, measured, monkeypatch, tmp_path):
    if without == "off":
        monkeypatch.setenv("LEANCONV_CALIBRATION", "off")
    elif without == "halide":
        monkeypatch.setattr(kept, "installed", lambda name: False)
    elif without == "compiler":
        monkeypatch.setattr(build, "compiler", lambda: "")
    else:
        monkeypatch.setenv("LEANCONV_CACHE", "relative")
    assert again() == Speeds()
    assert backend().calibration_s() == 0.0
    assert backend().facts()["calibration"].startswith("neutral speeds: ")
    assert without in backend().facts()["calibration"]
    assert not measured
    assert not (tmp_path / "kernels" / "calibration").exists()


def test_a_folder_that_takes_no_more(measured, monkeypatch, tmp_path):
    """It serves with what it has. Where it has none, nothing is measured, and nobody is told so."""
    again()
    monkeypatch.setattr(kept.cache, "shut", lambda path: "its file system is read-only")
    assert again() == SEEN
    assert backend().facts()["calibration"].startswith("0 min old")
    file_of(tmp_path).unlink()
    assert backend().facts()["calibration"].startswith("neutral speeds: no folder can keep it: its file system is read")
    assert backend().calibration_s() == 0.0
    assert again() == Speeds()
    assert len(measured) == 1


def test_an_unknown_word_is_an_error(measured, monkeypatch):
    monkeypatch.setenv("LEANCONV_CALIBRATION", "later")
    with pytest.raises(BadInput, match="LEANCONV_CALIBRATION is 'later'; it may be on or off"):
        again()


def test_a_measurement_that_fails_costs_no_kernel(measured, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise build.CannotBuild("cc failed")

    monkeypatch.setattr(probes, "measure", fails)
    assert again() == Speeds()
    assert not list((tmp_path / "kernels" / "calibration").glob("*.json"))


def test_the_next_process_measures_what_time_did_not_suffice_for(measured, monkeypatch, tmp_path):
    asked = []

    def slow(cpu, limit_s, known, **_):
        asked.append(dict(known))
        return dict(list(SEEN.to_dict().items())[: len(known) + 6])

    monkeypatch.setattr(probes, "measure", slow)
    assert (again().latency, again().winograd) == (SEEN.latency, SEEN.winograd)
    assert again() == again() == SEEN
    assert [len(known) for known in asked] == [0, 6]
    assert backend().calibration_s() == 0.0
    file_of(tmp_path).write_text(json.dumps(GOOD | {"speeds": {"narrow": 0.5}}))
    assert backend().calibration_s() == kept.LIMIT_S
    assert "without load, spread, latency, tile" in backend().facts()["calibration"]


class Meanwhile:
    """A lock that another process holds for a while. It leaves a file, or holds the lock for longer than we wait."""

    def __init__(self, figures, made):
        self.figures, self.made = figures, made

    def __call__(self, path, *_, **__):
        if self.figures is None:
            raise Held("another")
        path.with_suffix(".json").write_text(json.dumps(GOOD | {"made": self.made, "speeds": self.figures}))
        return nullcontext()


PART = {"narrow": 0.5, "latency": 4.25}


@pytest.mark.parametrize("before", [None, PART], ids=["nothing before", "a part before"])
@pytest.mark.parametrize("figures", [PART, PART | {"load": 0.75}, SEEN.to_dict(), None], ids=str)
def test_who_waits_takes_what_the_other_process_found(figures, before, measured, monkeypatch, tmp_path):
    """Before, each of those that waited measured some seconds more, one after the other, or all at once."""
    again()
    path = file_of(tmp_path)
    path.unlink()
    if before:
        path.write_text(json.dumps(GOOD | {"speeds": before}))
    measured.clear()
    monkeypatch.setattr(kept, "Lock", Meanwhile(figures, GOOD["made"] + 60))
    assert again() == Speeds(**(figures or before or {}))
    assert not measured


def test_the_runtime_is_built_before_the_lock_is_taken(measured, monkeypatch):
    """Its first build takes longer than others have patience: all of them measured then."""
    order = []
    monkeypatch.setattr(build, "runtime", lambda: order.append("runtime"))
    monkeypatch.setattr(kept, "Lock", lambda *_, **__: order.append("lock") or nullcontext())
    again()
    assert order == ["runtime", "lock"]


def test_what_no_core_can_have_is_moved_into_bounds():
    assert [within_bounds("narrow", value) for value in (99.0, -1.0)] == [BOUNDS["narrow"][1], BOUNDS["narrow"][0]]
    assert [within_bounds("load", value) for value in (math.nan, math.inf)] == [Speeds().load] * 2
    assert within_bounds("tile", 12.3456) == 12.3
    assert checked(SEEN.to_dict()) == SEEN.to_dict()
    assert all(low <= getattr(Speeds(), name) <= high for name, (low, high) in BOUNDS.items())


BINDS = """
import json, torch
from leanconv.kernels.cpu import bind
from leanconv.ops.separable import Separable
torch.set_num_threads(1)
bound = bind(Separable((32,), (), 16), [torch.randn(16, 32)])
x = torch.randn(1, 32, 9, 9).contiguous(memory_format=torch.channels_last)
bound([x])
print(json.dumps(bound.cpu.speeds.to_dict()))
"""


@pytest.mark.slow
def test_two_processes_at_once_agree_on_one_calibration(halide, tmp_path):
    """The second one waits for the first, and takes what that one measured."""
    if not build.compiler():
        pytest.skip("needs a C compiler")
    environment = os.environ | {"LEANCONV_CACHE": str(tmp_path / "kernels"), "LEANCONV_CALIBRATION": "on"}
    words = [sys.executable, "-W", "error", "-c", BINDS]
    both = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    one, two = (json.loads(out) for out, _ in answers)
    stored = json.loads(file_of(tmp_path).read_text())["speeds"]
    assert one == two
    assert stored.items() <= one.items()
    assert stored.items() - Speeds().to_dict().items()  # measured, though one figure may happen to be the neutral one
    assert not list((tmp_path / "kernels" / "calibration").glob("*.lock"))
