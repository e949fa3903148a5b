"""Papers: compare the papers' printed tables with our figures."""

from leanconv.papers.printed import PrintedRow, printed_rows, slugs
from leanconv.papers.reproduce import Reproduction, reproduce, reproducible

__all__ = ["PrintedRow", "Reproduction", "printed_rows", "reproduce", "reproducible", "slugs"]
