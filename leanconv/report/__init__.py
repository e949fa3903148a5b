"""Report: compare trained runs, as numbers and as one offline HTML file."""

from leanconv.report.build import build_report, compare_runs, write_report
from leanconv.report.document import Report

__all__ = ["Report", "build_report", "compare_runs", "write_report"]
