"""Markdown tables, JSON lines, and numbers that are valid in JSON."""

import json
import math
from collections.abc import Iterable
from typing import Any


def markdown(headings: tuple[str, ...], rows: list[tuple[str, ...]], n_left: int = 1) -> str:
    """Return a Markdown table; the first n_left columns are aligned to the left, the others to the right."""
    lines = [headings, tuple("---" if index < n_left else "---:" for index in range(len(headings))), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """Return the text on one line, with its pipes escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Return each record as JSON on a line of its own."""
    return "".join(f"{json.dumps(record)}\n" for record in records)


def finite(value: Any) -> Any:
    """Return the value with infinities and NaN replaced by None, since JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
