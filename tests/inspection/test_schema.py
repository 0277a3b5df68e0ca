"""The documentation lists the columns of a trace with types and meanings."""

from pathlib import Path

import pytest

from quietstar.inspection.schema import COLUMNS, EFFECTS, Column

DOCS = (Path(__file__).parents[2] / "docs/inspection.md").read_text()


def cell(text: str) -> str:
    return text.replace("|", "\\|")


@pytest.mark.parametrize("columns", [COLUMNS, EFFECTS], ids=["columns", "effects"])
def test_the_documented_schema_is_the_schema(columns: dict[str, Column]) -> None:
    rows = [
        f"| `{name}` | {column.type}{', or null' if column.optional else ''} | {cell(column.meaning)} |\n"
        for name, column in columns.items()
    ]
    assert "|---|---|---|\n" + "".join(rows) + "\n" in DOCS
