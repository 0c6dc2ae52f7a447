"""`dither report`."""

from __future__ import annotations

from dither.config import ReportConfig
from dither.report import write_report


def run(config: ReportConfig) -> None:
    """Write the pages of a run and print where they are."""
    print(f"report: {write_report(config.run, config.against)}")
