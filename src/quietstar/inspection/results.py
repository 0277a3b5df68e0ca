"""The files of a trace: records, summary, report, figures."""

import json
from dataclasses import asdict
from pathlib import Path

from quietstar.inspection.figures import draw_figures
from quietstar.inspection.payload import payload_of
from quietstar.inspection.report import report_html
from quietstar.inspection.tables import summary_markdown
from quietstar.inspection.trace import Trace
from quietstar.reporting.tables import finite

REPORT = "report.html"
FIGURES = "figures"


def write_results(
    found: Trace, folder: Path, *, format: str = "jsonl", report: bool = True, figures: bool = False
) -> None:
    """Write trace, summary.json and summary.md into a claimed folder, and report.html and figures if requested.

    Raises:
        MissingExtraError: Parquet or figures are requested, and pyarrow or matplotlib is not installed.
    """
    found.write_records(folder, format)
    summary = json.dumps(finite(asdict(found.summary)), indent=2)
    (folder / "summary.json").write_text(f"{summary}\n", encoding="utf-8")
    title = " ".join(found.model.split())
    (folder / "summary.md").write_text(f"# Thoughts of {title}\n\n{summary_markdown(found.summary)}", encoding="utf-8")
    if report or figures:
        payload = payload_of(found)
        if report:
            (folder / REPORT).write_text(report_html(payload), encoding="utf-8")
        if figures:
            draw_figures(payload, folder / FIGURES)
