"""The choice of the text column."""

import pytest

from quietstar.errors import DataError
from quietstar.training.data.columns import Columns, TextOf, pick_column


@pytest.mark.parametrize(
    ("wanted", "kinds", "column"),
    [
        (None, {"title": {str}, "text": {str}}, "text"),
        (None, {"id": {str}, "messages": {list, type(None)}}, "messages"),
        (None, {"text": {str}, "messages": {list}}, "text"),
        ("messages", {"text": {str}, "messages": {list}}, "messages"),
        (None, {"n": {int}, "body": {str, type(None)}}, "body"),
        (None, {"messages": {str}}, "messages"),
    ],
)
def test_the_column_of_the_text(wanted: str | None, kinds: dict, column: str) -> None:
    assert pick_column(wanted, Columns.of(kinds), "rows") == column


@pytest.mark.parametrize("kinds", [{"a": {str}, "b": {str}}, {"a": {str, int}}, {"a": {type(None)}}, {}])
def test_no_one_column(kinds: dict) -> None:
    with pytest.raises(DataError, match="--text_column, or a --template"):
        pick_column(None, Columns.of(kinds), "rows")


def test_a_row_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="not a list of messages"):
        TextOf(column="messages", holds_messages=True)({"messages": "hello"}, "rows")
    with pytest.raises(DataError, match=r"has \[\] \(list\), not text"):
        TextOf(column="text")({"text": []}, "rows")
    assert TextOf(column="text")({}, "rows") is None
