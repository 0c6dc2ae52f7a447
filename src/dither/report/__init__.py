"""The pages of a run: what was promised and reached, for readers; what happened, for operators."""

from __future__ import annotations

from dither.report.page import write_report
from dither.report.statement import Paragraph, Statement, guarantee_statement

__all__ = ["Paragraph", "Statement", "guarantee_statement", "write_report"]
