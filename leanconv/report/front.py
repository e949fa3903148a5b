"""The front of a search: what each cost does to the outputs, as predicted, and the plans that were measured."""

import io
from html import escape
from pathlib import Path
from typing import Any

from leanconv.extras import needs
from leanconv.files import check_own, origin, write_atomic
from leanconv.planner.found import Report, Trial

_LINE, _CHOSEN, _OTHER, _UNIFORM = "#7a7a7a", "#c2410c", "#1d4ed8", "#15803d"
_LOG_FROM = 30.0  # harms that differ by more than so many times get a log axis


def draw_front(found: Report, path: Path, *, title: str = "", overwrite: bool = False) -> Path:
    """Draw harm against cost. The suffix decides: .png, .svg, or .html with the numbers in a table.

    Raises: BadInput for a file in the way that is not ours, MissingExtra without matplotlib.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix == "html":
        content: bytes | str = _page(found, title)
    else:
        content = _picture(found, title, suffix)
    return write_atomic(path, content, check=lambda: check_own(path, overwrite))


def _page(found: Report, title: str) -> str:
    """One offline file: the drawing, and the tables of `Report` as text."""
    svg = _picture(found, title, "svg").decode()
    svg = svg[svg.index("<svg") :]  # without the XML head, which HTML does not have
    name = escape(f"Search {title}".strip())
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="generator" content="{origin()}">\n'
        f"<title>{name}</title>\n<style>body{{font-family:sans-serif;margin:2em;max-width:70em}}"
        f"svg{{width:100%;height:auto}}pre{{overflow-x:auto}}</style>\n<h1>{name}</h1>\n{svg}\n"
        f"<pre>{escape(str(found))}</pre>\n</html>\n"
    )


def _picture(found: Report, title: str, suffix: str) -> bytes:
    with needs("matplotlib", "report"):
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "leanconv"}):
        figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, found)
        axes.set_title(title, fontsize=10, parse_math=False)
        out = io.BytesIO()
        mark = {"Software" if suffix == "png" else "Creator": origin(), **({"Date": None} if suffix == "svg" else {})}
        figure.savefig(out, format=suffix, metadata=mark)
    return out.getvalue()


def _draw(axes: Any, found: Report) -> None:
    quantity = next(iter(found.dense))
    dense = found.dense[quantity]
    line = [(point.share, point.harm) for point in found.front]
    measured = [
        (trial.measured[quantity] / dense, trial.harm, trial)
        for trial in found.trials
        if quantity in trial.measured and trial.harm < float("inf")
    ]
    harms = [harm for harm in [*(y for _, y in line), *(y for _, y, _ in measured)] if harm > 0]
    if harms and max(harms) > _LOG_FROM * min(harms):
        axes.set_yscale("symlog", linthresh=min(harms))
    axes.plot([100 * x for x, _ in line], [y for _, y in line], color=_LINE, marker=".", label="predicted front")
    for kind, colour, mark in (("chosen", _CHOSEN, "*"), ("measured", _OTHER, "o"), ("uniform", _UNIFORM, "s")):
        points = [(100 * x, y, trial) for x, y, trial in measured if _kind(trial) == kind]
        size = 130 if kind == "chosen" else 36
        axes.scatter(
            [p[0] for p in points], [p[1] for p in points], c=colour, marker=mark, s=size, label=kind, zorder=3
        )
        for x, y, trial in points:
            axes.annotate(trial.name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set_xlabel(f"{quantity}, % of the dense network's")
    axes.set_ylabel(f"harm: {found.how_harm}")
    axes.set_xlim(0, 105)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)


def _kind(trial: Trial) -> str:
    return "chosen" if trial.chosen else "uniform" if trial.name.endswith("everywhere") else "measured"
