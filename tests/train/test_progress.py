"""A training's progress where no terminal shows a bar."""

from pathlib import Path

import pytest

from leanconv.train import progress
from leanconv.train.progress import Reporter


def _lines(seconds: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: Path) -> list[str]:
    """What 6 steps of `seconds` each say in a log."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report = Reporter(active=True, visible=True)
    with report.running(out, 0, 600, "Dice"):
        for step in range(1, 7):
            now[0] += seconds
            report.step(step, loss=1.25)
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = _lines(31, capsys, monkeypatch, tmp_path)
    assert [line.split("  ")[:2] for line in lines] == [[f"step {n} of 600", "loss 1.250"] for n in (2, 4, 6)]


def test_a_short_training_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _lines(5, capsys, monkeypatch, tmp_path) == []
