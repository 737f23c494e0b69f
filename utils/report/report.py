"""report.html: what an evaluation or an auto-labelling found, in one file that opens offline.

A command fills an `EvaluationReport` or an `AutolabelReport` with plain values and pictures and
calls `write_report`. Every list and every optional field may be left out; its section of the page
is then left out too.
"""

from __future__ import annotations

from pathlib import Path

from ..files.writing import write_file
from . import autolabel_page, evaluation_page
from .contents import AutolabelReport, ComparedRow, EvaluationReport
from .page import Example, Picture, page

__all__ = [
    "AutolabelReport",
    "ComparedRow",
    "EvaluationReport",
    "Example",
    "Picture",
    "report_text",
    "write_report",
]


def report_text(report: EvaluationReport | AutolabelReport) -> str:
    """The page as HTML."""
    if isinstance(report, EvaluationReport):
        subtitle = evaluation_page.subtitle(report)
        sections = evaluation_page.sections(report)
    else:
        subtitle = autolabel_page.subtitle(report)
        sections = autolabel_page.sections(report)
    return page(report.title, subtitle, sections)


def write_report(path: Path | str, report: EvaluationReport | AutolabelReport) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    write_file(path, report_text(report))
