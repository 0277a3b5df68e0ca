"""Templates that combine the columns of a row into a text. Untrusted rows and templates cannot run anything.

Values are written as in JSON: `true`, and numbers with the characters they have in the file. A format is applied to the
value.
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
        SettingsError: the template does not parse, names no column, or contains more than values and formats.
    """
    columns = [field.column for _, field in _pieces(template) if field is not None]
    if not columns or "" in columns:
        raise SettingsError(f'template {template!r} names no column: write it as "Q: {{question}}\\nA: {{answer}}"')
    return columns


class _Field(NamedTuple):
    """A value in a template: `{column[key]!conversion:spec}`."""

    name: str
    column: str
    keys: list[str]
    spec: str
    conversion: str | None


@lru_cache(maxsize=16)
def _pieces(template: str) -> list[tuple[str, _Field | None]]:
    """Return the parts of a template, each a text and the field after it. Attributes of values are not accessible."""
    pieces: list[tuple[str, _Field | None]] = []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(template):
            if name is None:
                pieces.append((literal, None))
                continue
            if (path := re.fullmatch(r"([^\[\]]*)((?:\[[^\[\]]+\])*)", name)) is None:
                raise ValueError(f"{{{name}}} is not a column or an item of one, {{column[key]}} or {{column[0]}}")
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
    """Fill a template with the values of a row, or return None if a value is None or missing.

    Items are looked up by key or index; attributes of values are never read.

    Raises:
        DataError: a value is neither text nor number, is not valid Unicode, or lacks items that the template names.
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
                raise TypeError(f"the value is a {type(value).__name__}")
            if isinstance(value, bool) and not (field.spec or field.conversion):
                value = as_written(value)
            part = format(string.Formatter().convert_field(value, field.conversion), field.spec)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"template {template!r} cannot be filled at {{{field.name}}} with a row of {source!r} "
                f"({reason(error)}): write an item of a nested column as {{column[key]}} "
                "or {column[0]}"
            ) from error
        if half_character(part) is not None:
            raise DataError(
                f"{{{field.name}}} of template {template!r} has half a character (a lone surrogate) in {source!r}: fix "
                "the row"
            )
        text += part
    return text


def _item(value: Any, key: str) -> Any:
    """Return an item of a value, or None if the value or the item is None or missing."""
    if value is None:
        return None
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list | str):
        index = int(key)
        return value[index] if -len(value) <= index < len(value) else None
    raise TypeError(f"{type(value).__name__} has no items")
