"""The files of a trace: records, summary, report, figures."""

import json
from dataclasses import asdict
from pathlib import Path

from quietstar.evaluation.report import finite
from quietstar.inspection.tables import summary_markdown
from quietstar.inspection.trace import Trace

REPORT = "report.html"
FIGURES = "figures"


def write_results(
    found: Trace, folder: Path, *, format: str = "jsonl", report: bool = True, figures: bool = False
) -> None:
    """Write trace, summary.json and summary.md into a folder; report.html and figures where asked for.

    Raises:
        MissingExtraError: Parquet or figures are asked for, and pyarrow or matplotlib is not installed.
    """
    found.write(folder, format)
    (folder / "summary.json").write_text(json.dumps(finite(asdict(found.summary)), indent=2) + "\n")
    text = f"# Thoughts of {found.model}\n\n{summary_markdown(found.summary)}"
    (folder / "summary.md").write_text(text, encoding="utf-8")
    if report:
        (folder / REPORT).write_text(found.html(), encoding="utf-8")
    if figures:
        from quietstar.inspection.figures import draw_figures
        from quietstar.inspection.payload import payload_of

        (folder / FIGURES).mkdir(exist_ok=True)
        draw_figures(payload_of(found), folder / FIGURES)
