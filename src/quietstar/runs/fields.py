"""Dataclass fields that are options of a command, with their help texts."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, field, fields
from numbers import Real
from typing import Any, get_args, get_type_hints

from quietstar.errors import SettingsError, shown


class Help(str):
    """A help text, the heading under which `--help` lists it, and the values that its option may have.

    argparse is not told of the values: a class that is built in Python checks them, too (`check_values`).
    """

    group: str
    """empty for that of the class"""
    choices: tuple[str, ...]

    def __new__(cls, text: str, group: str, choices: Collection[str] = ()) -> "Help":
        """Return the text with its group and values."""
        made = super().__new__(cls, text)
        made.group, made.choices = group, tuple(choices)
        return made


def option(default: Any, help: str, group: str = "", choices: Collection[str] = (), is_first: bool = False) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: its default; each instance gets its own list.
        help: its help text.
        group: heading under which `--help` lists it; empty for that of the class.
        choices: values that it may have; empty for any.
        is_first: it may be given without its name, as the first argument of a class whose others need theirs.
    """
    metadata = {"help": Help(help, group, choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata, kw_only=False if is_first else MISSING)


def check_values(options: Any) -> None:
    """Raise SettingsError if an option is none of its choices, or no number where it takes one; None is not given.

    Args:
        options: an instance of a dataclass. Of an option that is a list, each item has the choices.
    """
    hints = get_type_hints(type(options))
    for each in fields(options):
        help, value = each.metadata.get("help"), getattr(options, each.name, None)
        if not isinstance(help, Help) or value is None:
            continue
        if {*get_args(hints[each.name]), hints[each.name]} & {int, float} and not isinstance(value, Real):
            raise SettingsError(f"{each.name} is {shown(value)}; give a number")
        for item in value if isinstance(value, list) else [value]:
            if help.choices and item not in help.choices:
                raise SettingsError(f"{each.name} is {shown(item)}; choose from {', '.join(help.choices)}")


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
