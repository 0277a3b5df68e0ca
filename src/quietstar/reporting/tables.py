"""Markdown tables, and numbers that JSON can hold."""

import math
from typing import Any


def markdown(headings: tuple[str, ...], rows: list[tuple[str, ...]], n_left: int = 1) -> str:
    """A Markdown table; all columns but the first few are aligned to the right."""
    lines = [headings, tuple("---" if index < n_left else "---:" for index in range(len(headings))), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """In one line, and with no end of a cell in it."""
    return " ".join(text.split()).replace("|", "\\|")


def finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON does not know: null in their place."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
