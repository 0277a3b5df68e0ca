"""Templates: how the columns of a row become one text. Rows and templates may come from anywhere and run nothing.

Values stand in the text as JSON writes them: true, and the characters that a number has in the file. A format is
applied to the value.
"""

import re
import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from quietstar.errors import DataError, SettingsError, reason
from quietstar.text.files import as_written
from quietstar.text.unicode import half_character


def template_columns(template: str) -> list[str]:
    """Return the columns that a template names, in order.

    Raises:
        SettingsError: the template does not parse, names no column, or asks for more than values and their format.
    """
    columns = [field.column for _, field in _pieces(template) if field is not None]
    if not columns or "" in columns:
        raise SettingsError(f'template {template!r} names no column: write it as "Q: {{question}}\\nA: {{answer}}"')
    return columns


class _Field(NamedTuple):
    """A value that a template asks for: `{column[key]!conversion:spec}`."""

    name: str
    column: str
    keys: list[str]
    spec: str
    conversion: str | None


@lru_cache(maxsize=16)
def _pieces(template: str) -> list[tuple[str, _Field | None]]:
    """What a template is made of: text, and the value after it. Attributes of a value are none of its items."""
    pieces: list[tuple[str, _Field | None]] = []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(template):
            if name is None:
                pieces.append((literal, None))
                continue
            if (path := re.fullmatch(r"([^\[\]]*)((?:\[[^\[\]]+\])*)", name)) is None:
                raise ValueError(f"{{{name}}} is no column and no item of one, {{column[key]}} or {{column[0]}}")
            if re.search(r"\d{4}|[{}]", spec or ""):
                raise ValueError(f"the format of {{{name}}} has braces, or a number of more than three digits")
            keys = re.findall(r"\[([^\[\]]+)\]", path[2])
            pieces.append((literal, _Field(name, path[1], keys, spec or "", conversion)))
    except ValueError as error:
        raise SettingsError(
            f"template {template!r} does not parse ({error}): write a column as {{name}}, a brace as {{{{"
        ) from error
    return pieces


def fill_template(template: str, row: Mapping[str, Any], source: str) -> str | None:
    """Fill a template with the values of a row; None where a value is None or missing.

    Only items are looked up, by key or index: no attribute of a value is read.

    Raises:
        DataError: a value is no text and no number, is not whole Unicode, or has no items where the template names one.
        SettingsError: as `template_columns`.
    """
    text = ""
    for literal, field in _pieces(template):
        text += literal
        if field is None:
            continue
        try:
            value = row.get(field.column)
            for key in field.keys:
                value = _item(value, key)
            if value is None:
                return None
            if isinstance(value, list | dict | bytes):
                raise TypeError(f"it holds a {type(value).__name__}")
            if isinstance(value, bool) and not (field.spec or field.conversion):
                value = as_written(value)
            words = format(string.Formatter().convert_field(value, field.conversion), field.spec)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"template {template!r} cannot be filled at {{{field.name}}} with a row of {source!r} "
                f"({reason(error)}): write an item of a nested column as {{column[key]}} "
                "or {column[0]}"
            ) from error
        if half_character(words) is not None:
            raise DataError(
                f"{{{field.name}}} of template {template!r} is half a character in {source!r}, no whole Unicode text: "
                "fix it"
            )
        text += words
    return text


def _item(value: Any, key: str) -> Any:
    """The item of a value; None where the value, or the item, is None or missing."""
    if value is None:
        return None
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list | str):
        index = int(key)
        return value[index] if -len(value) <= index < len(value) else None
    raise TypeError(f"{type(value).__name__} has no items")
