"""Columns of rows: which of them holds the text, and the text of a row."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quietstar.errors import DataError, shown
from quietstar.text.files import Number
from quietstar.text.unicode import half_character
from quietstar.training.data.template import fill_template

MESSAGES = "messages"
"""the column of a conversation, a list of {"role": ..., "content": ...}, in the rows of a chat dataset"""

TOOLS = "tools"
"""the column beside it that says what the assistant may call"""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns, in order, and which of them hold strings and which lists, where they hold anything."""

    names: list[str]
    of_strings: list[str]
    of_lists: list[str]

    @classmethod
    def of(cls, kinds: Mapping[str, Collection[type]]) -> "Columns":
        """Those whose values are of these types."""
        held = {name: set(of) - {type(None)} for name, of in kinds.items()}
        of_strings, of_lists = ([name for name, of in held.items() if of == {kind}] for kind in (str, list))
        return cls(list(held), of_strings, of_lists)


def pick_column(wanted: str | None, columns: Columns, source: str) -> str:
    """Choose the column that holds the text.

    Args:
        wanted: the `text_column` given; or None to choose "text", or "messages" where it holds lists, or else the only
            column of strings.
        columns: those that there are.
        source: the dataset's name, for the message.

    Raises:
        DataError: there is no such column, or no one column to choose.
    """
    there_are = f"its columns are {', '.join(columns.names)}"
    if wanted is not None:
        if wanted not in columns.names:
            raise DataError(f"{source!r} has no column {wanted!r}, {there_are}: pass one of them as --text_column")
        return wanted
    if "text" in columns.names:
        return "text"
    if MESSAGES in columns.of_lists:
        return MESSAGES
    if len(columns.of_strings) == 1:
        return columns.of_strings[0]
    raise DataError(
        f"{source!r} has no column 'text' and not one single column of strings, {there_are}: "
        "pass one of them as --text_column, or a --template"
    )


@dataclass(frozen=True)
class TextOf:
    """Makes the text of a row: by a template, or of one column.

    Args:
        template: see `template`; None for a column.
        column: its name, where there is no template.
        holds_messages: the column holds lists of messages, whose text is JSON, with the row's tools; strings otherwise.
    """

    template: str | None = None
    column: str = "text"
    holds_messages: bool = False

    @property
    def name(self) -> str:
        """The column that the texts are handed on in."""
        return MESSAGES if self.holds_messages else "text"

    def __call__(self, row: Mapping[str, Any], source: str) -> str | None:
        """The text of a row; None where a value of it is None, or the column is not there.

        Args:
            row: column -> value.
            source: where the row is from, for messages.

        Raises:
            DataError: the row does not hold what it should.
        """
        if self.template is not None:
            return fill_template(self.template, row, source)
        value = row.get(self.column)
        if value is None:
            return None
        if self.holds_messages:
            if not isinstance(value, list):
                raise DataError(
                    f"column {self.column!r} of {source!r} holds {shown(value)}, not a list of messages: fix it"
                )
            conversation = {"messages": value, "tools": _tools(row.get(TOOLS), source)}
            value = json.dumps(conversation, default=_plain, ensure_ascii=False)
        if not isinstance(value, str):
            raise DataError(
                f"column {self.column!r} of {source!r} holds {shown(value)} ({type(value).__name__}), not text: "
                "pass a column of strings as --text_column, or a --template"
            )
        if half_character(value) is not None:
            raise DataError(
                f"column {self.column!r} of {source!r} holds half a character, no whole Unicode text: fix it"
            )
        return value


def _tools(value: Any, source: str) -> list[Any] | None:
    """What the assistant may call, of a list or of its JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"column {TOOLS!r} of {source!r} holds {shown(value)}, which is not JSON: fix it"
            ) from error
    if value is not None and not isinstance(value, list):
        raise DataError(f"column {TOOLS!r} of {source!r} holds {shown(value)}, not a list of tools: fix it")
    return value


def _plain(value: Any) -> Any:
    """What stands in JSON for a value that it does not know."""
    return value.value if isinstance(value, Number) else str(value)
