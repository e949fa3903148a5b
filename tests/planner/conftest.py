"""Searches of the tests keep nothing in the user's cache folder."""

import pytest

from leanconv.kernels.cpu.compilation.permissions import claim
from leanconv.planner import kept


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(kept, "cache_folder", lambda: None if claim(folder) else folder)
    return folder
