"""Dataclass fields that are options of a command, with their help texts."""

from dataclasses import field
from typing import Any


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
