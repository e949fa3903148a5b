"""The cache of native code under attack: what is not ours and unchanged is built again, never loaded."""

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from leanconv.kernels.cpu import cache

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")


class Builder:
    """Counts how often it was asked, and writes what it was told to."""

    def __init__(self, content=b"good"):
        self.calls, self.content = 0, content

    def __call__(self, path):
        self.calls += 1
        path.write_bytes(self.content)


@pytest.fixture
def entry(tmp_path):
    where = cache.folder(tmp_path / "kernels")
    path = cache.fetch("name", Builder(), where)
    return where, path


def again(where):
    builder = Builder(b"new")
    return cache.fetch("name", builder, where), builder.calls


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
    assert "another user" in cache._claim(where)


def test_a_folder_that_stood_open_is_closed_and_emptied(tmp_path):
    where = tmp_path / "open"
    where.mkdir(mode=0o777)
    where.chmod(0o777)
    (where / "name.so").write_bytes(b"planted")
    assert cache.folder(where) == where
    assert where.stat().st_mode & 0o777 == 0o700
    assert list(where.iterdir()) == []


@pytest.mark.parametrize("what", ["link", "file", "unwritable"])
def test_a_folder_that_cannot_be_ours_gives_one_warning(tmp_path, what, monkeypatch):
    where = tmp_path / "kernels"
    if what == "link":
        (tmp_path / "real").mkdir()
        where.symlink_to(tmp_path / "real")
    elif what == "file":
        where.write_text("")
    else:  # the tests may run as root, who may write everywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.warns(UserWarning, match="set LEANCONV_CACHE") as seen:
        used = cache.folder(where)
    assert len(seen) == 1
    assert used != where
    assert used.stat().st_mode & 0o777 == 0o700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.folder(where) == used
    cache.folder.cache_clear()


def test_a_failed_build_leaves_nothing(tmp_path):
    where = cache.folder(tmp_path / "kernels")

    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.fetch("name", fail, where)
    assert list(where.iterdir()) == []


def test_many_builders_at_once_give_one_sound_entry(tmp_path):
    where = cache.folder(tmp_path / "kernels")
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
    assert "absolute" in cache._claim(cache.default_folder())


PROGRAM = """
import torch
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu import build
from leanconv.ops.separable import Separable
torch.set_num_threads(1)
x, w = torch.ones(1, 3, 4, 5), torch.ones(2, 3)
y, _ = bind(Separable((3,), (), 2), [w])([x])
assert torch.equal(y, torch.full((1, 2, 4, 5), 3.0))
"""


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
