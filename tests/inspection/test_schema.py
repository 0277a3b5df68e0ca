"""The documentation lists the columns that a trace has, with their types and meanings."""

from pathlib import Path

from quietstar.inspection.schema import COLUMNS, EFFECTS

DOCS = (Path(__file__).parents[2] / "docs/inspection.md").read_text()


def test_the_documented_schema_is_the_schema() -> None:
    listed = [line for line in DOCS.splitlines() if line.startswith("| `")]
    expected = [
        f"| `{name}` | {column.type}{', or null' if column.optional else ''} | {column.meaning} |"
        for name, column in (COLUMNS | EFFECTS).items()
    ]
    assert [line for line in listed if line in expected] == expected
    start = listed.index(expected[0])
    assert listed[start : start + len(expected)] == expected
