"""What a shell offers at TAB (argcomplete), in less time than torch takes to import.

The options are fields of dataclasses, transformers' and ours, which take seconds to import. The first completion of an
option imports them, and writes what it found to a file in the user's cache; later ones read that file.
"""

import argparse
import contextlib
import importlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import argcomplete

import quietstar

PACKAGE = Path(quietstar.__file__).parent


def complete(commands: Mapping[str, str]) -> None:
    """Answer the shell, which asks through environment variables, and exit.

    Args:
        commands: command -> what it does.
    """
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")[:-1]
    given = next((word for word in words if word in commands), None)
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    for command, what in commands.items():
        verb = verbs.add_parser(command, help=what)
        for option in options_of(commands)[command] if command == given else ():
            verb.add_argument(option.pop("name"), **option)
    argcomplete.autocomplete(parser, always_complete_options=False)


def options_of(commands: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return command -> its options and positional arguments, each as the arguments of `add_argument`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quietstar" / "options.json"
    changed = max(file.stat().st_mtime_ns for file in PACKAGE.rglob("*.py"))
    source = [str(PACKAGE), version("transformers"), changed]
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(cache.read_text(encoding="utf-8"))
        if found["source"] == source:
            return found["options"]
    options = {command: described(importlib.import_module(f"quietstar.cli.{command}").parser()) for command in commands}
    with contextlib.suppress(OSError):  # a home that cannot be written to
        cache.parent.mkdir(parents=True, exist_ok=True)
        aside = cache.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({"source": source, "options": options}), encoding="utf-8")
        aside.replace(cache)
    return options


def described(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """Return a parser's options and positional arguments without --help, each as `add_argument` takes it."""
    described = []
    for action in parser._actions:
        option: dict[str, Any] = {"name": (action.option_strings or [action.dest])[0], "help": action.help}
        own = getattr(action.help, "choices", ())
        if action.nargs == 0:
            option["action"] = "store_true"
        else:
            choices = ("true", "false") if action.const is True else action.choices or own
            option |= {"nargs": action.nargs, "choices": [str(choice) for choice in choices or ()] or None}
        if action.dest != "help":
            described.append(option)
    return described
