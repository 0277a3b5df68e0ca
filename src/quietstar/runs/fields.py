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


def option(default: Any, help: str, group: str) -> Any:
    """A dataclass field with its help text and the group that it is listed under; a list is each instance's own."""
    metadata = {"help": Help(help, group)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
