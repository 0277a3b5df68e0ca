"""What a study found: study.json, study.md and study.html."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quietstar.reporting.tables import finite, markdown
from quietstar.runs.folders import versions, write_whole
from quietstar.study.comparison import ALL_TOKENS, HARD_TOKENS, Comparison
from quietstar.study.measure import THOUGHTS, Measured
from quietstar.study.page import study_html
from quietstar.study.recipe import Recipe
from quietstar.study.tables import TABLES, about
from quietstar.study.verdict import verdict

OF_TOKENS = ("nll", "base_nll", "entropy", "interventions", "tasks")
"""what only the record in a run's own folder has"""


def findings_of(recipe: Recipe, files: Mapping[Path, Measured], folder: Path) -> dict[str, Any]:
    """Return everything that a study found, as study.json has it.

    Args:
        recipe: the study's.
        files: records of runs, in order, by the files that hold them.
        folder: of the report; paths in it are relative to this.

    Raises:
        SettingsError: the untouched base has not been measured.
    """
    found = Comparison(recipe, list(files.values()))
    levels, differences, replaced = found.levels(), found.differences(), found.replaced()
    findings: dict[str, Any] = finite(
        {
            "verdict": verdict(found, differences, replaced),
            "recipe": asdict(recipe),
            "versions": versions(),
            "n_test_tokens": sum(map(len, found.masks[ALL_TOKENS])),
            "n_hard_tokens": int(sum(mask.sum() for mask in found.masks[HARD_TOKENS])),
            "levels": [asdict(each) for each in levels],
            "differences": [asdict(each) for each in differences],
            "replaced": [asdict(each) for each in replaced],
            "runs": [
                {name: value for name, value in asdict(record).items() if name not in OF_TOKENS}
                | {"report": _report_of_thoughts(file, folder)}
                for file, record in files.items()
            ],
        }
    )
    return findings


def _report_of_thoughts(record: Path, folder: Path) -> str | None:
    """Return the path of a run's own report of thoughts, if it has one."""
    report = record.parent / THOUGHTS / "report.html"
    return os.path.relpath(report, folder) if report.is_file() else None


def write_report(folder: Path, findings: dict[str, Any]) -> None:
    """Write study.json, study.md and study.html into a folder."""
    write_whole(folder / "study.json", json.dumps(findings, indent=2) + "\n")
    write_whole(folder / "study.md", study_markdown(findings))
    write_whole(folder / "study.html", study_html(findings))


def study_markdown(findings: dict[str, Any]) -> str:
    """Return the whole study as Markdown: the verdict first, then tables."""
    text = "# Do thoughts pay?\n\n" + "".join(f"- {sentence}\n" for sentence in findings["verdict"])
    text += f"\n{about(findings)}\n"
    for table in TABLES:
        headings, rows = table.of(findings)
        if rows:
            text += f"\n## {table.title}\n\n{table.about}\n\n{markdown(headings, rows, n_left=table.n_left)}"
    return text
