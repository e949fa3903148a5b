"""Searches of the tests keep nothing in the user's cache folder."""

import pytest

from leanconv.planner import kept


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(kept, "cache_folder", lambda: folder)
    return folder
