"""Columns of datasets: choosing the one with the text, and the text of a row."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quietstar.errors import DataError, shown
from quietstar.text.files import Number
from quietstar.text.unicode import half_character
from quietstar.training.data.template import fill_template

MESSAGES = "messages"
"""column of a chat dataset with conversations, lists of {"role": ..., "content": ...}"""

TOOLS = "tools"
"""column of a chat dataset with the tools that the assistant may call"""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns, in order, and those of them with strings and with lists, nulls aside."""

    names: list[str]
    of_strings: list[str]
    of_lists: list[str]

    @classmethod
    def of(cls, kinds: Mapping[str, Collection[type]]) -> "Columns":
        """Return columns from the types of their values, by name."""
        types = {name: set(found) - {type(None)} for name, found in kinds.items()}
        of_strings, of_lists = ([name for name, found in types.items() if found == {kind}] for kind in (str, list))
        return cls(list(types), of_strings, of_lists)


def pick_column(wanted: str | None, columns: Columns, source: str) -> str:
    """Return the column with the text.

    That is `wanted`; or if it is None, "text", or "messages" if it has lists, or the only column of strings.

    Raises:
        DataError: the column does not exist, or the choice is not unique.
    """
    in_dataset = f"its columns are {', '.join(columns.names)}"
    if wanted is not None:
        if wanted not in columns.names:
            raise DataError(f"{source!r} has no column {wanted!r}, {in_dataset}; give one of them as --text_column")
        return wanted
    if "text" in columns.names:
        return "text"
    if MESSAGES in columns.of_lists:
        return MESSAGES
    if len(columns.of_strings) == 1:
        return columns.of_strings[0]
    raise DataError(
        f"{source!r} has no column 'text', and not exactly one column of strings, {in_dataset}; give one of them as "
        "--text_column, or a --template"
    )


@dataclass(frozen=True)
class TextOf:
    """Function from a row to its text, by a template or from one column.

    Args:
        template: see `template`; None for a column.
        column: its name, if there is no template.
        holds_messages: the column has lists of messages, and the text is their JSON with the row's tools.
    """

    template: str | None = None
    column: str = "text"
    holds_messages: bool = False

    @property
    def name(self) -> str:
        """Name of the column for the texts."""
        return MESSAGES if self.holds_messages else "text"

    def __call__(self, row: Mapping[str, Any], source: str) -> str | None:
        """Return the text of a row, or None if a value is None or missing.

        Raises:
            DataError: a value has the wrong type; the message says where, in `source`.
        """
        if self.template is not None:
            return fill_template(self.template, row, source)
        value = row.get(self.column)
        if value is None:
            return None
        if self.holds_messages:
            if not isinstance(value, list):
                raise DataError(
                    f"column {self.column!r} of {source!r} has {shown(value)}, not a list of messages: fix the row"
                )
            conversation = {"messages": value, "tools": _tools(row.get(TOOLS), source)}
            value = json.dumps(conversation, default=_plain, ensure_ascii=False)
        if not isinstance(value, str):
            raise DataError(
                f"column {self.column!r} of {source!r} has {shown(value)} ({type(value).__name__}), not text: "
                "pass a column of strings as --text_column, or a --template"
            )
        if half_character(value) is not None:
            raise DataError(
                f"column {self.column!r} of {source!r} has half a character (a lone surrogate): fix the row"
            )
        return value


def _tools(value: Any, source: str) -> list[Any] | None:
    """Return the tools that the assistant may call, from a list or its JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"column {TOOLS!r} of {source!r} has {shown(value)}, which is not JSON: fix the row"
            ) from error
    if value is not None and not isinstance(value, list):
        raise DataError(f"column {TOOLS!r} of {source!r} has {shown(value)}, not a list of tools: fix the row")
    return value


def _plain(value: Any) -> Any:
    """Return the JSON form of a value of another type."""
    return value.value if isinstance(value, Number) else str(value)
