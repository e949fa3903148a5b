"""The cache of native code under attack: what is not ours and unchanged is built again, never loaded."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from leanconv import kernels
from leanconv.files import LOCK, Lock, drafts
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.compilation import build, cache, permissions
from leanconv.kernels.cpu.runtime import abi
from leanconv.ops.separable import Separable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")

linked = pytest.mark.skipif(not build.compiler(), reason="no C compiler: apt install gcc")


class Builder:
    """Counts how often it was asked, and writes what it was told to."""

    def __init__(self, content=b"good"):
        self.calls, self.content = 0, content

    def __call__(self, path):
        self.calls += 1
        path.write_bytes(self.content)


@pytest.fixture(autouse=True)
def _nothing_given_up(monkeypatch):
    monkeypatch.setattr(cache, "_gone", {})


def claimed(path):
    """The folder, made ours."""
    assert permissions.claim(path) is None
    return path


@pytest.fixture
def entry(tmp_path):
    where = claimed(tmp_path / "kernels")
    path = cache.fetch("name", Builder(), where)
    return where, path


def again(where):
    builder = Builder(b"new")
    return cache.fetch("name", builder, where), builder.calls


def test_the_key_covers_every_file_that_pipelines_compute_with(monkeypatch):
    hashed = []
    monkeypatch.setattr(build, "_hashed", lambda files, tools: hashed.extend(map(str, files)))
    build._kernel_source.__wrapped__("")
    root = Path(kernels.__file__).parents[1]
    imports = re.compile(r"^ *from leanconv\.([a-z_.]+) import", re.MULTILINE)
    read = {name for path in build.PIPELINES.glob("*.py") for name in imports.findall(path.read_text())}
    wanted = {str(root / f"{name.replace('.', '/')}.py") for name in read - {"extras"}}  # it imports halide
    assert wanted
    assert wanted <= set(hashed)
    assert all(map(os.path.isfile, hashed))


def test_built_once_and_found_again(entry):
    where, path = entry
    assert where.stat().st_mode & 0o777 == 0o700
    assert path.read_bytes()[:4] == b"good"
    assert path.stat().st_mode & 0o077 == 0
    found, calls = again(where)
    assert (found, calls) == (path, 0)
    assert [p.name for p in where.iterdir()] == ["name.so"]  # nothing half-built stays behind


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer", "renamed"])
def test_a_damaged_entry_is_built_again(entry, damage):
    where, path = entry
    data = path.read_bytes()
    changed = {"flipped": b"G" + data[1:], "cut": data[:-1], "empty": b"", "longer": data + b"x"}
    if damage == "renamed":  # a sound entry under the name of another
        path.rename(where / "name2.so")
        builder = Builder(b"new")
        cache.fetch("name2", builder, where)
        assert builder.calls == 1
        return
    path.write_bytes(changed[damage])
    found, calls = again(where)
    assert calls == 1
    assert found.read_bytes()[:3] == b"new"


def test_links_are_never_followed(entry, tmp_path):
    where, path = entry
    elsewhere = tmp_path / "elsewhere.so"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    found, calls = again(where)
    assert calls == 1
    assert not found.is_symlink()
    assert elsewhere.read_bytes()[:4] == b"good"  # replaced, not written through


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o744])
def test_what_others_may_touch_is_not_trusted(entry, mode):
    where, path = entry
    path.chmod(mode)
    assert again(where)[1] == 1


def test_a_foreign_owner_is_not_trusted(entry, monkeypatch):
    where, _ = entry
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    assert again(where)[1] == 1
    assert "another user" in permissions.claim(where)


def test_a_folder_that_stood_open_is_closed_and_emptied(tmp_path):
    where = tmp_path / "open"
    where.mkdir(mode=0o777)
    where.chmod(0o777)
    (where / f"{cache.key('a')}.so").write_bytes(b"planted")
    (where / f"{cache.key('b')}.so").symlink_to(tmp_path)
    assert permissions.claim(where) is None
    assert where.stat().st_mode & 0o777 == 0o700
    assert list(where.iterdir()) == []


def test_other_files_are_never_touched(tmp_path):
    """`LEANCONV_CACHE` may name a home, or a folder of libraries."""
    where = tmp_path / "home"
    where.mkdir(mode=0o755)
    where.chmod(0o755)
    for name in ("thesis.txt", "library.so"):
        (where / name).write_text("mine")
    assert "other files" in permissions.claim(where)
    assert where.stat().st_mode & 0o777 == 0o755
    where.chmod(0o700)
    assert permissions.claim(where) is None
    cache.trim(where, 0)
    assert sorted(path.name for path in where.iterdir()) == ["library.so", "thesis.txt"]


def refusing(where):
    """`TemporaryDirectory` that cannot write to `where`: the tests may run as root, who may write everywhere."""
    real = cache.tempfile.TemporaryDirectory

    def make(prefix, dir):
        if dir == where:
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix, dir=dir)

    return make


@linked
def test_a_folder_that_nothing_can_be_added_to_gives_what_it_has(tmp_path, monkeypatch):
    where = tmp_path / "kernels"
    monkeypatch.setenv("LEANCONV_CACHE", str(where))
    made = []

    def make(path):
        made.append(path.parent.parent)
        build._cc(["-shared", "-o", str(path), str(build.PIPELINES / "stub.c")], path.parent)

    assert build._library(cache.key("", "first"), make) is not None
    monkeypatch.setattr(cache.tempfile, "TemporaryDirectory", refusing(where))
    assert build._library(cache.key("", "first"), make) is not None
    with pytest.warns(UserWarning, match="cannot be kept in .*Permission denied"):
        assert build._library(cache.key("", "second"), make) is not None
    assert build._library(cache.key("", "first"), make) is not None
    assert build._library(cache.key("", "second"), make) is not None
    assert made[0] == where
    assert len(made) == 2
    assert made[1] != where
    assert "1 kept in" in kernels.status()


@linked
@pytest.mark.parametrize("what", ["link", "file", "unwritable", "noexec", "full"])
def test_a_folder_that_cannot_serve_gives_one_warning(tmp_path, what, monkeypatch):
    where = tmp_path / "kernels"
    if what == "link":
        (tmp_path / "real").mkdir()
        where.symlink_to(tmp_path / "real")
    elif what == "file":
        where.write_text("")
    elif what == "unwritable":
        monkeypatch.setattr(cache.tempfile, "TemporaryDirectory", refusing(where))
    elif what == "noexec":
        flags = type("Flags", (), {"f_flag": getattr(os, "ST_NOEXEC", 8)})
        real = os.statvfs
        monkeypatch.setattr(permissions.os, "statvfs", lambda path: flags if path == where else real(path))
        monkeypatch.setattr(permissions.os, "ST_NOEXEC", flags.f_flag, raising=False)
    if what == "full":
        real_usage = shutil.disk_usage
        none = type("Usage", (), {"free": 0})
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: none if path == where else real_usage(path))
    monkeypatch.setenv("LEANCONV_CACHE", str(where))

    def make(path):
        build._cc(["-shared", "-o", str(path), str(build.PIPELINES / "stub.c")], path.parent)

    with pytest.warns(UserWarning, match="cannot be kept in .*set LEANCONV_CACHE") as seen:
        assert build._library(cache.key("", "stub"), make) is not None
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used = next(each for each in cache.folders(where) if each != where)
        assert build._library(cache.key("", "stub"), make) is not None
    assert used.stat().st_mode & 0o777 == 0o700
    assert cache.usage(used)[0] >= 1
    assert "set LEANCONV_CACHE" in str(seen[0].message)


@linked
@torch.no_grad()
@pytest.mark.parametrize("broken", ["folders", "compiler", "kernels"])
def test_what_cannot_be_kept_is_made_in_the_process(halide, broken, monkeypatch, tmp_path):
    """No folder serves; the compiler makes nothing; the compiler makes the runtime and then no kernel."""
    memos = (build.runtime, build._kernel, build._in_process_only, abi.library, cache._temporary)
    for memo in memos:
        memo.cache_clear()
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path))
    real = build._cc

    def refuse(arguments, folder):
        if broken == "kernels" and "kernel.o" not in str(arguments) and "stub.c" not in str(arguments):
            return real(arguments, folder)
        raise build.CannotBuild("cc failed: no space")

    if broken == "folders":
        monkeypatch.setattr(cache, "claim", lambda path: "it is a bad day")
    else:
        monkeypatch.setattr(build, "_cc", refuse)
    try:
        with pytest.warns(UserWarning, match="compiled") as seen:
            y, _ = bind(Separable((3,), (), 2), [torch.ones(2, 3)])([torch.ones(1, 3, 4, 5)])
        assert torch.equal(y, torch.full((1, 2, 4, 5), 3.0))
        assert any("compiled in this process alone" in str(w.message) for w in seen)
        assert len(seen) == (2 if broken == "folders" else 1)
        assert broken != "folders" or "no folder can hold them" in kernels.status()
    finally:
        for memo in memos:
            memo.cache_clear()


@linked
def test_what_a_compiler_says_is_told_in_one_line(tmp_path):
    source = tmp_path / "bad.c"
    source.write_text("int f(void) { return one; }\nint g(void) { return two; }\n")
    with pytest.raises(build.CannotBuild) as found:
        build._cc(["-c", str(source), "-o", str(tmp_path / "bad.o")], tmp_path)
    assert "two" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("inside", ["empty", "full"])
def test_a_folder_where_an_entry_belongs_is_replaced(entry, inside):
    where, path = entry
    path.unlink()
    path.mkdir()
    if inside == "full":
        (path / "file").write_text("")
    found, calls = again(where)
    assert calls == 1
    assert found.read_bytes()[:3] == b"new"
    assert again(where)[1] == 0


@linked
@pytest.mark.parametrize("what", ["folder", "file that stays"])
def test_what_blocks_one_entry_costs_no_other(tmp_path, monkeypatch, what):
    """A mount point, an immutable file: this kernel goes elsewhere, the folder serves for the others, nobody warns."""
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kernels"))
    where = claimed(tmp_path / "kernels")
    blocked = where / f"{cache.key('', 'first')}.so"
    blocked.mkdir() if what == "folder" else blocked.write_bytes(b"")
    real = cache.Path.replace

    def replace(self, target):
        if target == blocked:
            raise OSError(16, "Device or resource busy")
        return real(self, target)

    monkeypatch.setattr(cache.shutil, "rmtree", lambda *a, **k: None)
    monkeypatch.setattr(cache.Path, "replace", replace)

    def make(path):
        build._cc(["-shared", "-o", str(path), str(build.PIPELINES / "stub.c")], path.parent)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build._library(cache.key("", "first"), make).lc_attach
        assert build._library(cache.key("", "second"), make).lc_attach
    assert blocked.is_dir() == (what == "folder")
    assert (where / f"{cache.key('', 'second')}.so").is_file()
    assert cache.shut_reason(where) == ""


def test_what_cannot_be_removed_is_left_and_the_others_go(tmp_path):
    where = claimed(tmp_path / "kernels")
    keys = [cache.key(str(index)) for index in range(3)]
    for index, key in enumerate(keys[:2]):
        path = cache.fetch(key, Builder(b"x" * 968), where)
        os.utime(path, (index, index))
    (where / f"{keys[2]}.so").mkdir()
    os.utime(where / f"{keys[2]}.so", (0, 0))
    assert cache.usage(where) == (2, 2000)
    cache.trim(where, 1500)
    assert [path.name for path in where.iterdir() if path.is_file()] == [f"{keys[1]}.so"]


@linked
def test_an_entry_that_is_no_library_is_made_once_more_and_never_kept(tmp_path, monkeypatch):
    """A compiler that wrote nonsense was kept for good: its nonsense had the right hash."""
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kernels"))
    made = []

    def nonsense(path):
        made.append(path)
        path.write_bytes(b"nonsense" * 99)

    with pytest.raises(build.CannotBuild, match="made no library"):
        build._library(cache.key("", "kernel"), nonsense)
    assert len(made) == 2
    assert not list((tmp_path / "kernels").iterdir())

    def sound(path):
        build._cc(["-shared", "-o", str(path), str(build.PIPELINES / "stub.c")], path.parent)

    assert build._library(cache.key("", "kernel"), sound, ["lc_attach"]).lc_attach
    with pytest.raises(build.CannotBuild, match="it lacks lc_kernel_argv"):
        build._library(cache.key("", "another"), sound, ["lc_attach", "lc_kernel_argv"])
    assert cache.usage(tmp_path / "kernels")[0] == 1


def test_a_home_that_nobody_has_is_no_crash(monkeypatch):
    monkeypatch.setenv("LEANCONV_CACHE", "~nobody-of-this-name/kernels")
    assert "absolute" in permissions.claim(cache.default_folder())


def test_what_a_killed_process_was_building_goes_with_the_next_build(tmp_path, monkeypatch):
    where = claimed(tmp_path / "kernels")
    for name in (".building-killed", ".building-living"):
        (where / name).mkdir()
        (where / name / LOCK).touch()
        (where / name / "half.so").write_bytes(b"half")
    monkeypatch.setattr(drafts, "_swept", set())
    with Lock(where / ".building-living" / LOCK):
        cache.fetch("name", Builder(), where)
        assert {path.name for path in where.iterdir()} == {".building-living", "name.so"}


def test_folders_above_that_others_can_write_to(tmp_path, monkeypatch):
    above = tmp_path / "above"
    above.mkdir()
    where = above / "new" / "kernels"
    for mode, word in ((0o777, "everybody can write to"), (0o1777, None), (0o755, None)):
        above.chmod(mode)
        reason = permissions.claim(where)
        assert (reason is None) if word is None else (word in reason and str(above) in reason)
    assert (above / "new").stat().st_mode & 0o777 == 0o700
    above.chmod(0o770)
    monkeypatch.setattr(permissions, "_private", lambda group: False)
    assert "a group can write to" in permissions.claim(where)
    above.chmod(0o700)
    if os.getuid() == 0:
        os.chown(above, 12345, -1)
        assert "belongs to another user" in permissions.claim(where)


def test_a_group_of_the_user_alone_is_no_stranger(monkeypatch):
    import grp
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda _: type("User", (), {"pw_gid": 77, "pw_name": "ann"}))
    for name, members, trusted in (
        ("ann", [], True),
        ("ann", ["ann"], True),
        ("ann", ["bob"], False),
        ("us", [], False),
    ):
        monkeypatch.setattr(grp, "getgrgid", lambda _, n=name, m=members: type("G", (), {"gr_name": n, "gr_mem": m}))
        assert permissions._private(77) is trusted
    assert not permissions._private(78)


def test_what_was_not_used_for_longest_goes(tmp_path, monkeypatch):
    where = claimed(tmp_path / "kernels")
    keys = [cache.key(str(index)) for index in range(11)]
    for index in range(10):
        path = cache.fetch(keys[index], Builder(b"x" * 968), where)  # 1000 bytes with the hash
        os.utime(path, (index * 1e6, index * 1e6))
    cache.fetch(keys[0], Builder(), where)  # used again
    (where / ".building-old").mkdir()
    os.utime(where / ".building-old", (0, 0))
    (where / ".building-new").mkdir()
    cache.trim(where, 10_000)
    assert cache.usage(where) == (10, 10_000)
    cache.trim(where, 5_000)
    kept = {".building-new", *(f"{keys[index]}.so" for index in (0, 7, 8, 9))}
    assert {p.name for p in where.iterdir()} == kept
    monkeypatch.setattr(cache, "LIMIT", 3_000)
    monkeypatch.setattr(cache, "_LOOK_EVERY", 1)
    cache.fetch(keys[10], Builder(b"x" * 968), where)
    assert cache.usage(where)[1] <= 3_000
    assert (where / f"{keys[10]}.so").exists()


@linked
def test_an_entry_that_goes_before_it_is_loaded_is_built_again(tmp_path, monkeypatch):
    where, path = claimed(tmp_path / "kernels"), tmp_path / "kernels" / "name.so"
    real, loads = ctypes.CDLL, []

    def load(name, mode):
        loads.append(name)
        if len(loads) == 1:
            path.unlink()  # another process tidies up
        return real(name, mode)

    monkeypatch.setattr(build.ctypes, "CDLL", load)
    made = []

    def make(path):
        made.append(path)
        build._cc(["-shared", "-o", str(path), str(build.PIPELINES / "stub.c")], path.parent)

    assert build._opened("name", make, where).lc_attach
    assert (len(made), len(loads)) == (2, 2)


def test_a_failed_build_leaves_nothing(tmp_path):
    where = claimed(tmp_path / "kernels")

    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.fetch("name", fail, where)
    assert list(where.iterdir()) == []


def test_many_builders_at_once_give_one_sound_entry(tmp_path):
    where = claimed(tmp_path / "kernels")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: cache.fetch("name", Builder(os.urandom(1 << 16)), where), range(16)))
    assert found == {where / "name.so"}
    assert again(where)[1] == 0


def test_keys_depend_on_every_part():
    assert len({cache.key("a", "b"), cache.key("a", "c"), cache.key("ab", ""), cache.key("a", "b", "")}) == 4


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "mine"))
    assert cache.default_folder() == tmp_path / "mine"
    monkeypatch.delenv("LEANCONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "leanconv"
    monkeypatch.setenv("LEANCONV_CACHE", "relative")
    assert "absolute" in permissions.claim(cache.default_folder())


PROGRAM = """
import torch
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.compilation import build
from leanconv.ops.separable import Separable
torch.set_num_threads(1)
x, w = torch.ones(1, 3, 4, 5), torch.ones(2, 3)
y, _ = bind(Separable((3,), (), 2), [w])([x])
assert torch.equal(y, torch.full((1, 2, 4, 5), 3.0))
"""


@pytest.mark.slow
def test_two_processes_at_once_and_a_third_that_compiles_nothing(halide, tmp_path):
    environment = os.environ | {"LEANCONV_CACHE": str(tmp_path / "kernels"), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment) for _ in range(2)]
    assert [p.wait() for p in running] == [0, 0]
    entries = {p: p.stat().st_mtime_ns for p in (tmp_path / "kernels").iterdir()}
    assert entries
    assert all(p.suffix == ".so" for p in entries)
    spoiled = PROGRAM.replace("torch.set_num", "build._cc = None\ntorch.set_num")  # no compiler is called
    assert subprocess.run([sys.executable, "-c", spoiled], env=environment).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "kernels").iterdir()} == entries
