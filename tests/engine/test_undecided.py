"""A table of `optimize` that decided nothing: the given model won because time ran out."""

import pytest

from leanconv.engine.choices import Choice, Choices


@pytest.mark.parametrize(
    ("rows", "missed", "undecided"),
    [
        ([Choice("eager", chosen=True), Choice("fused", ratio=0.7)], "", False),
        ([Choice("eager", chosen=True), Choice("fused", ratio=2.0, confirmed=0.99)], "", True),
        ([Choice("eager", chosen=True), Choice("fused", ratio=1.2)], "", True),
        ([Choice("eager", chosen=True)], "fused, openvino", True),
        ([Choice("eager"), Choice("fused", ratio=1.2, chosen=True)], "openvino", False),
    ],
)
def test_undecided(rows, missed, undecided):
    assert Choices(tuple(rows), "a CPU", 0, 1.0, missed=(missed, 60.0)).undecided is undecided
