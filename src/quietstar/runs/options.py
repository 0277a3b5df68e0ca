"""Command lines from dataclasses: our own options first, in groups, and a YAML file that flags override."""

import argparse
import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser

from quietstar.errors import QuietStarError, SettingsError, did_you_mean, shown
from quietstar.runs.fields import Help
from quietstar.text.unicode import half_character

INHERITED = "further options, those of transformers' Trainer"
RUNS_CODE = frozenset({"trust_remote_code", "lm_eval_path"})
"""options that run code from elsewhere: a YAML file cannot set them, as it may come with that code"""
LONGEST = 2**16
"""largest size of a YAML file, in bytes"""


class Listing(argparse.HelpFormatter):
    """Lists each option under one name, with its default unless the help text mentions it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        is_switch = action.nargs == 0 or action.const is True
        return name if is_switch else f"{name} {self._format_args(action, 'VALUE')}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings:
            return text
        if action.option_strings[0].startswith("--no_"):
            return f"disable --{action.option_strings[0].removeprefix('--no_')}"
        has_none = action.default is None or action.default is False or action.default in ([], argparse.SUPPRESS)
        return text if has_none or "default" in text.lower() else f"{text} (default: %(default)s)"


class OneLineParser(argparse.ArgumentParser):
    """Reports an error on one line, with the closest option, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage of every option, and exit."""
        known = [option for action in self._actions for option in action.option_strings]
        message = " ".join(message.split())
        wrong = next((word.split("=")[0] for word in message.split() if word.startswith("--")), "")
        hint = did_you_mean(wrong, known) if "unrecognized" in message else ""
        self.exit(2, f"{self.prog}: {message}{hint or f'; see {self.prog} --help'}\n")


def make_parser(
    prog: str,
    description: str,
    *classes: type,
    groups: tuple[str, ...] = (),
    config: bool = False,
    positional: dict[str, str] | None = None,
    omitted: Collection[str] = (),
) -> OneLineParser:
    """Return a parser with an option for every field of the dataclasses.

    A field is listed under the group of its help text (`quietstar.runs.fields.Help`), else under its class's
    `_argument_group_name`, as with HfArgumentParser, else last.

    Args:
        prog: the command's name.
        description: what the command does.
        classes: dataclasses whose fields HfArgumentParser can parse.
        groups: the order of the groups; others follow.
        config: whether options may also come from a YAML file.
        positional: name -> help of the positional arguments; a name that ends in ? is optional.
        omitted: fields that are no options, and keep their defaults.
    """
    positional = positional or {}
    names = [f"[{name[:-1].upper()}]" if name.endswith("?") else name.upper() for name in positional]
    parser = OneLineParser(
        prog=prog,
        description=description,
        usage=" ".join([prog, *names, "[options]"]),
        allow_abbrev=False,
        formatter_class=Listing,
    )
    for name, what in positional.items():
        parser.add_argument(name.removesuffix("?"), nargs="?" if name.endswith("?") else None, help=what)
    if config:
        parser.add_argument(
            "--config",
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="YAML file of options; flags override the file",
        )
    listed: dict[str, list[dataclasses.Field]] = {title: [] for title in groups}
    for cls in classes:
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            help = field.metadata.get("help")
            own = help.group if isinstance(help, Help) else ""
            title = own or getattr(cls, "_argument_group_name", INHERITED)
            if field.init and field.name not in omitted:
                field.type = hints[field.name]
                listed.setdefault(title, []).append(field)
    for title, fields in listed.items():
        group = parser.add_argument_group(title)
        for field in fields:
            HfArgumentParser._parse_dataclass_field(group, field)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str], *classes: type, rest: bool = False) -> tuple[Any, ...]:
    """Return instances of the dataclasses, made from flags and from the YAML file given with `--config`.

    With `rest`, the last item is a dictionary of the other arguments; its `config` is the YAML file, or None.

    Raises:
        SettingsError: the file cannot be read, or a value in it or in a flag is invalid.
    """
    given = parser.parse_args(argv)
    if hasattr(given, "config"):
        given = parser.parse_args([*from_yaml(given.config, parser), *argv])
    values = {name: value for name, value in vars(given).items() if name != "config"}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{name} is {value}; give a finite number")
    made: list[Any] = []
    own = {field.name for cls in classes for field in dataclasses.fields(cls)}
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        try:
            made.append(cls(**{name: value for name, value in values.items() if name in names}))
        except QuietStarError:
            raise
        except Exception as error:  # transformers raises errors of many types for its own options
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SettingsError(f"invalid options: {reason}") from error
    if rest:
        others = {name: value for name, value in values.items() if name not in own}
        made.append({"config": getattr(given, "config", None), **others})
    return tuple(made)


def from_yaml(file: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags that a YAML file is equivalent to.

    Raises:
        SettingsError: the file cannot be read, is not a mapping, or has an unknown option or an invalid value.
    """
    return as_flags(f"config {file}", read_yaml(f"config {file}", file, "n_ahead: 8"), parser)


def read_yaml(name: str, file: str, example: str) -> dict[Any, Any]:
    """Return the mapping in a YAML file.

    Args:
        name: what messages call the file.
        file: its path.
        example: a line that it could have, for messages.

    Raises:
        SettingsError: the file cannot be read, or is not a mapping.
    """
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise SettingsError(f"{name} is longer than {LONGEST} bytes; give a YAML file of options")
        settings = yaml.load(text.decode(), UniqueKeys)
    except SettingsError:
        raise
    except OSError as error:
        where = "; recipes/ is a folder in a clone of the project" if Path(file).parts[:1] == ("recipes",) else ""
        raise SettingsError(f"{name} cannot be read: {error.strerror}; give a YAML file{where}") from error
    except Exception as error:  # the YAML library raises errors of many types, for example at unknown tags
        raise SettingsError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"{name} is a {type(settings).__name__}; give lines such as '{example}'")
    return settings


def as_flags(name: str, settings: Mapping[Any, Any], parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags that options, as YAML has them, are equivalent to.

    Args:
        name: where they come from, for messages.
        settings: option -> value; None leaves an option out.
        parser: knows the options.

    Raises:
        SettingsError: an option is unknown, or a value is not one that a command line can hold.
    """
    by_name = {action.dest: action for action in parser._actions}
    known = set(by_name)
    flags = []
    for key, value in settings.items():
        if key not in known or key in ("config", "help"):
            raise SettingsError(f"{name} has unknown option {shown(key)}{did_you_mean(shown(key), known)}")
        if value is None:
            continue
        if key in RUNS_CODE and value:
            raise SettingsError(
                f"{name} has {key}, which runs code from elsewhere; read that code first, and give --{key} on "
                "the command line"
            )
        try:
            if isinstance(value, list):
                flags += [f"--{key}", *map(_as_flag, value)] if value else []
            else:
                flags.append(f"--{key}={_as_flag(value, by_name[key])}")
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"{name} has {key} {shown(value)}, which is not a valid value of an option; fix the file"
            ) from error
    return flags


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may be given only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raise for a duplicate key; by default, the last value would win."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, n in counts.items() if n > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{shown(repeated[0])} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _as_flag(value: Any, action: argparse.Action | None = None) -> str:
    """Return a value of a YAML file as a command line would have it."""
    if isinstance(value, bool) and action is not None and action.type is str:
        return "yes" if value else "no"  # YAML reads them as true and false
    if not isinstance(value, str | int | float | date | dict):
        raise TypeError(f"an option cannot be of type {type(value).__name__}")
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    if "\0" in text or half_character(text) is not None:
        raise ValueError("a command line cannot hold this text")
    return text


def say(line: str) -> None:
    """Print a message to stderr, apart from a command's results."""
    print(line, file=sys.stderr)
