"""Generates the operators' pages, the index, the guide, the figures, and the measured parts of other pages."""

from pathlib import Path

from docs.generate.banner import NAME, banner_times, draw_banner, times
from docs.generate.blocks import filled
from docs.generate.figures import FIGURES, draw, drawn
from docs.generate.guide import guide_page
from docs.generate.kernels import kernels_page
from docs.generate.measured import Results
from docs.generate.operators import index_page, operator_page
from leanconv.files import write_atomic
from leanconv.nn import names

ROOT = Path(__file__).parents[1]

FILLED = ("../README.md", "results.md")  # written by hand, with generated blocks

__all__ = ["ROOT", "pages", "write"]


def pages(results: Results | None = None) -> dict[str, str]:
    """Every generated page: path under `docs` -> text. Read from the sources at hand alone, so always the same."""
    results = Results.read() if results is None else results
    texts = {f"operators/{name}.md": operator_page(name, results) for name in names()}
    by_hand = {name: filled((ROOT / name).read_text(encoding="utf-8"), results) for name in FILLED}
    return texts | by_hand | {"README.md": index_page(), "guide.md": guide_page(results), "kernels.md": kernels_page()}


def write(root: Path = ROOT) -> list[Path]:
    """Write what has changed, remove pages of operators that are gone; returns the paths that were touched."""
    touched = []
    texts = pages()
    for name, text in texts.items():
        path = (root / name).resolve()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            touched.append(write_atomic(path, text))
    for path in sorted((root / "operators").glob("*.md")):
        if f"operators/{path.name}" not in texts:
            path.unlink()
            touched.append(path)
    for name, (data, *_) in FIGURES.items():
        path = root / "figures" / name
        if not path.exists() or drawn(path) != data():
            touched.append(draw(name, path))
    banner, results = root / "figures" / NAME, Results.read()
    if not banner.exists() or banner_times(banner) != times(results):
        touched.append(draw_banner(banner, results))
    return touched
