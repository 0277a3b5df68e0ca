"""Fields of dataclasses that are options of a command, with the help text that lists them."""

from dataclasses import field
from typing import Any


class Help(str):
    """A help text that knows under which heading `--help` lists it."""

    group: str

    def __new__(cls, text: str, group: str) -> "Help":
        """The text, filed under the group."""
        made = super().__new__(cls, text)
        made.group = group
        return made


def option(default: Any, help: str, group: str | None = None) -> Any:
    """Return a dataclass field with a help text, listed under a group if one is given; each instance gets its list."""
    metadata = {"help": help if group is None else Help(help, group)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
