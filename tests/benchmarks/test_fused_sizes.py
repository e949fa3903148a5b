"""The benchmark of other sizes: what it counts as compiled."""

import pytest
from torch import nn

from benchmarks.fused_sizes import sizes
from leanconv.kernels import backend


@pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels")
def test_a_size_that_is_met_twice_compiles_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kernels"))
    model = nn.Sequential(nn.Conv2d(3, 11, 3, padding=1), nn.ReLU(), nn.Conv2d(11, 11, 3, padding=1, groups=11)).eval()
    lines = sizes(model, 33, [33, 35], 2).splitlines()
    first, same, other = (line.split() for line in lines[2:5])
    assert int(first[1]) >= 2
    assert same[1] == same[3] == "0"
    assert other[0] == "35"
    assert float(other[-1]) > 0
    assert "prepared for 33" in lines[-1]
