"""The report's plots: matplotlib draws SVG, which is then adapted to the page's colours and tooltips.

plotly's script alone has 4.6 MB. A plot here has 20 kB and needs no script for display, screen readers or printing.
Colours are CSS variables, so one drawing serves the light and the dark page.
"""

import io
import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from leanconv.extras import needs

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
# Placeholders for CSS variables while matplotlib draws. No other part of a drawing uses these colours.
_INK, _MUTED, _GRID = "#010203", "#010204", "#010205"
SERIES = 8  # colours of the page's palette. More runs repeat the colours and differ by marker and dash
_SERIES = [f"#0102{0x10 + i:02x}" for i in range(SERIES)]
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(_SERIES)
}
_MARKERS = ["o", "s", "D", "^", "v", "P", "X", "p", "h"]
_DASHES: list[Any] = ["-", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 2, 2))]


@dataclass(frozen=True)
class Curve:
    """One line. `index`, the run's row in the table, selects colour and marker. `dashed`: a run's second line."""

    name: str
    index: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Point:
    """One model: latency in ms with its interquartile range, a score, and the size of its mark (0 to 1).

    `plain_ms`: latency in plain PyTorch if `ms` is the optimised one. Its mark is hollow. `score_half`: half the 95 %
    interval of the score.
    """

    name: str
    index: int
    ms: float
    iqr_ms: float
    score: float
    size: float = 0.5
    tip: str = ""
    plain_ms: float = math.nan
    score_half: float = 0.0


@dataclass
class _Canvas:
    """A figure in progress: the axes, and artist id -> the tooltips of its marks."""

    name: str
    axes: Any
    figure: Any
    tips: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    svg: str = ""

    def tag(self, artist: Any, kind: str, index: int, tips: list[str]) -> None:
        gid = f"{kind}-{index}-{len(self.tips)}"
        artist.set_gid(gid)
        self.tips[gid], self.runs[gid] = tips, index


def curves(name: str, label: str, series: Sequence[Curve], *, x_label: str, y_label: str, log: bool = False) -> str:
    """Draw training curves as one inline `<svg>`, from 0 upwards. Every number must be finite."""
    with _canvas(name, label, (5.2, 3.0)) as canvas:
        for curve in series:
            points = len(curve.x)
            (line,) = canvas.axes.plot(
                curve.x,
                curve.y,
                color=_SERIES[curve.index % SERIES],
                linestyle=_DASHES[2] if curve.dashed else _DASHES[(curve.index // SERIES) % len(_DASHES)],
                linewidth=1.2 if curve.dashed else 1.9,
                marker=_MARKERS[curve.index % len(_MARKERS)],
                markersize=7 if points <= 3 else 4.5 if points <= 40 else 2.5,
                markeredgewidth=0,
            )
            shown = [
                f"{curve.name}: {y_label} {y:.4g} at {x_label} {x:g}" for x, y in zip(curve.x, curve.y, strict=True)
            ]
            canvas.tag(line, "curve", curve.index, shown)
        canvas.axes.set_xlabel(x_label)
        canvas.axes.set_ylabel(y_label)
        canvas.axes.xaxis.get_major_locator().set_params(integer=True)
        if len({x for curve in series for x in curve.x}) == 1:  # one epoch: show integers around it
            canvas.axes.set_xlim(series[0].x[0] - 1, series[0].x[0] + 1)
        if log:
            canvas.axes.set_yscale("log")
            canvas.axes.set_ylabel(f"{y_label} (log scale)")
        else:
            from_zero(canvas.axes, [y for curve in series for y in curve.y])
    return canvas.svg


def from_zero(axes: Any, values: Sequence[float]) -> None:
    """Let the vertical axis start at 0, so that a small difference looks small. It goes lower for values below 0."""
    low, high = min([0.0, *values]), max([0.0, *values])
    axes.set_ylim(low * 1.05, high * 1.05 if high > low else low + 1.0)


def frontier(name: str, label: str, points: Sequence[Point], *, y_label: str, narrow: bool = False) -> str:
    """Draw accuracy against latency as one inline `<svg>`. Up and left is better; a line joins the Pareto front.

    `narrow`: for phones, smaller with letters of the same size.
    """
    with _canvas(name, label, (4.9, 4.2) if narrow else (8.6, 4.2)) as canvas:
        axes = canvas.axes
        best = _unbeaten(points)
        axes.step([p.ms for p in best], [p.score for p in best], where="post", color=_MUTED, linewidth=1, zorder=1)
        for point in points:
            colour = _SERIES[point.index % SERIES]
            # Centre the bar of the interquartile range on the median.
            axes.plot(
                [point.ms - point.iqr_ms / 2, point.ms + point.iqr_ms / 2], [point.score] * 2, color=colour, lw=1.5
            )
            if point.score_half > 0:
                ends = [max(0.0, point.score - point.score_half), point.score + point.score_half]
                axes.plot([point.ms] * 2, ends, color=colour, lw=1.5)
            look: Any = {
                "linestyle": "none",
                "marker": _MARKERS[point.index % len(_MARKERS)],
                "color": colour,
                "alpha": 0.9,
                "clip_on": False,
                "markersize": 8 + 10 * math.sqrt(max(0.0, min(1.0, point.size))),
            }
            if math.isfinite(point.plain_ms):
                axes.plot([point.plain_ms, point.ms], [point.score] * 2, color=colour, lw=1, linestyle=(0, (2, 2)))
                (mark,) = axes.plot(
                    [point.plain_ms], [point.score], markerfacecolor="none", markeredgewidth=1.5, **look
                )
                tip = f"{point.name} in plain PyTorch: {point.plain_ms:.3g} ms, {point.score:.3f}"
                canvas.tag(mark, "plain", point.index, [tip])
            (mark,) = axes.plot([point.ms], [point.score], markeredgewidth=0, **look)
            canvas.tag(mark, "point", point.index, [point.tip or f"{point.name}: {point.ms:.3g} ms, {point.score:.3f}"])
        scale = " (log scale)" * _room(axes, points)
        axes.set_xlabel(f"latency, ms an image{scale}")
        axes.set_ylabel(y_label)
        _labels(canvas, points)
    return canvas.svg


def _unbeaten(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front of latency and score, sorted by latency."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.score)):
        if not kept or point.score > kept[-1].score:
            kept.append(point)
    return kept


def _room(axes: Any, points: Sequence[Point]) -> bool:
    """Set limits that contain marks and names; both axes start at 0.

    Latencies that differ by more than five times get a log axis instead. Returns whether they do.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    plain = [p.plain_ms for p in points if math.isfinite(p.plain_ms)]
    ms, scores = [p.ms for p in points] + plain, [p.score for p in points]
    high = max([p.ms + p.iqr_ms / 2 for p in points] + plain)
    from_zero(axes, [*scores, min(1.0, max(p.score + p.score_half for p in points) * 1.1)])
    if log := min(ms) > 0 and max(ms) / min(ms) > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low = max(min(p.ms - p.iqr_ms / 2 for p in points), min(ms) / 2)
        axes.set_xlim(low / 1.2, high * (high / low) ** 0.25)
    else:
        axes.set_xlim(0.0, 1.35 * max(high, 1e-6))
    return log


def _labels(canvas: _Canvas, points: Sequence[Point]) -> None:
    """Put each name beside its mark, shifted down if it would cover another name.

    If a line leads to plain PyTorch's mark, the name goes above. Positions are pixels of the finished drawing.
    """
    canvas.figure.draw_without_rendering()
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: -p.score):
        name = point.name if len(point.name) <= 26 else point.name[:25] + "…"
        x, y = canvas.axes.transData.transform((point.ms, point.score))
        edge = canvas.axes.transData.transform((point.ms + point.iqr_ms / 2, point.score))[0]
        over = math.isfinite(point.plain_ms)
        away = -5.0 if over else max(12.0, float(edge - x) + 5)
        left, right, place = x + away, x + away + 7.2 * len(name), y + 20 * over
        while any(abs(place - other) < 15 and left < end and right > start for start, end, other in taken):
            place += 4 if over else -4
        taken.append((left, right, place))
        words = canvas.axes.annotate(
            name,
            (point.ms, point.score),
            xytext=(away, place - y),
            textcoords="offset pixels",
            va="center",
            fontsize=10.5,
            color=_INK,
            annotation_clip=False,
            parse_math=False,
        )
        words.set_in_layout(False)  # a long name may overlap the margin, but must not squeeze the axes


@contextmanager
def _canvas(name: str, label: str, inches: tuple[float, float]) -> Iterator[_Canvas]:
    with needs("matplotlib", "report"):
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    look: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None, "font.family": ["DejaVu Sans"], "font.size": 11,
        "axes.edgecolor": _MUTED, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _MUTED,
        "ytick.color": _MUTED, "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED, "grid.color": _GRID,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
        "axes.grid.axis": "y", "axes.axisbelow": True, "xtick.major.size": 3, "ytick.major.size": 0,
        "axes.linewidth": 0.8, "grid.linewidth": 0.8, "lines.solid_capstyle": "round",
        "axes.formatter.useoffset": False,
    }  # fmt: skip
    with rc_context(look), warnings.catch_warnings():
        # The page's fonts draw the text, so missing glyphs in matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=inches, dpi=72, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        canvas = _Canvas(name, axes, figure)
        yield canvas
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    canvas.svg = _page_svg(out.getvalue(), canvas, label)


def _page_svg(text: str, canvas: _Canvas, label: str) -> str:
    """Adapt matplotlib's file to the page: fonts and colours, unique ids, tooltips for marks."""
    for prefix, uri in (("", SVG), ("xlink", XLINK)):
        ET.register_namespace(prefix, uri)
    root = ET.fromstring(text)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("class", "plot")
    for defs in root.iter(f"{{{SVG}}}defs"):
        for sheet in defs.findall(f"{{{SVG}}}style"):
            defs.remove(sheet)  # it would affect the whole page
    for element in root.iter():
        gid, style = element.get("id", ""), element.get("style")
        if gid in canvas.tips:
            element.set("class", f"run run-{canvas.runs[gid]}")
            _tooltips(element, canvas.tips[gid])
        # Matplotlib names its groups figure_1, axes_1, ... in every drawing. A page needs unique ids.
        for key, before in (("id", ""), (f"{{{XLINK}}}href", "#"), ("clip-path", "url(#")):
            if (value := element.get(key)) is not None:
                element.set(key, before + f"{canvas.name}-" + value.removeprefix(before))
        if style is not None:
            for colour, variable in _VARIABLES.items():
                style = style.replace(colour, variable)
            element.set("style", style.replace("'DejaVu Sans'", "var(--font)"))
    return ET.tostring(root, encoding="unicode")


def _tooltips(group: ET.Element, tips: list[str]) -> None:
    marks = list(group.iter(f"{{{SVG}}}use"))
    for mark, tip in zip(marks, tips, strict=False):
        mark.set("class", "mark")
        mark.set("data-tip", tip)
