"""Dataclass fields that are options of a command, with their help texts."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, fields
from typing import Any

from quietstar.errors import SettingsError, shown


class Help(str):
    """A help text, the heading under which `--help` lists it, and the values that its option may have.

    argparse is not told of the values: a class that is built in Python checks them, too (`check_choices`).
    """

    group: str
    """empty for that of the class"""
    choices: tuple[str, ...]

    def __new__(cls, text: str, group: str, choices: Collection[str] = ()) -> "Help":
        """Return the text with its group and values."""
        made = super().__new__(cls, text)
        made.group, made.choices = group, tuple(choices)
        return made


def option(default: Any, help: str, group: str = "", choices: Collection[str] = ()) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: its default; each instance gets its own list.
        help: its help text.
        group: heading under which `--help` lists it; empty for that of the class.
        choices: values that it may have; empty for any.
    """
    metadata = {"help": Help(help, group, choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_choices(options: Any) -> None:
    """Raise SettingsError if an option, or an item of one that is a list, is none of its choices; None is not given."""
    for each in fields(options):
        choices = getattr(each.metadata.get("help"), "choices", ())
        value = getattr(options, each.name, None)
        for item in value if isinstance(value, list) else [value]:
            if choices and item is not None and item not in choices:
                raise SettingsError(f"{each.name} is {shown(item)}; choose from {', '.join(choices)}")


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
