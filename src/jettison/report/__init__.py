"""What a run did, as a page to hand around: one self-contained HTML file per run, and one that compares runs."""

from jettison.report.compare import write_comparison
from jettison.report.page import write_report
from jettison.report.plan_page import write_plan
from jettison.report.xr_page import write_xr

__all__ = ["write_comparison", "write_plan", "write_report", "write_xr"]
