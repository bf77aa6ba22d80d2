"""What a run did, as a page to hand around: one self-contained HTML file per run, and one that compares runs."""

from jettison.report.compare import write_comparison
from jettison.report.page import write_report

__all__ = ["write_comparison", "write_report"]
