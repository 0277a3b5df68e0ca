"""Dataclass fields that are options of a command, with their help texts."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from quietstar.errors import SettingsError


class Help(str):
    """A help text, and the heading under which `--help` lists it."""

    group: str

    def __new__(cls, text: str, group: str) -> "Help":
        """Return the text with its group."""
        made = super().__new__(cls, text)
        made.group = group
        return made


def option(default: Any, help: str, group: str | None = None) -> Any:
    """Return a dataclass field with a help text, listed under a group if one is given; each instance gets its list."""
    metadata = {"help": help if group is None else Help(help, group)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_at_least(options: Any, lowest: Mapping[str, int], kind: str = "number") -> None:
    """Raise SettingsError if an option is below its lowest value, or not finite; None is not an option given.

    Args:
        options: has them as attributes.
        lowest: name -> lowest value.
        kind: what the message asks for.
    """
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            raise SettingsError(f"{name} is {value}; give a {kind} of at least {least}")


def check_above_0(options: Any, names: Iterable[str]) -> None:
    """Raise SettingsError if an option is not above 0, or not finite; None is not an option given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise SettingsError(f"{name} is {value}; give a number above 0")
