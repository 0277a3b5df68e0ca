"""Command lines from dataclasses: our own options first, in groups; a YAML file beside the flags."""

import argparse
import dataclasses
import difflib
import json
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser

from quietstar.errors import QuietStarError, SettingsError, shown
from quietstar.text.unicode import half_character

INHERITED = "further options, as transformers' Trainer takes them"
RUNS_CODE = frozenset({"trust_remote_code", "lm_eval_path"})
"""options under which code from elsewhere runs: a file of options, which may come from there, cannot give them"""
LONGEST = 2**16
"""bytes of a YAML file"""


class Listing(argparse.HelpFormatter):
    """Lists an option by one name, and its default where its text does not give one."""

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
            return f"the opposite of --{action.option_strings[0].removeprefix('--no_')}"
        silent = action.default in (None, False, argparse.SUPPRESS) or "default" in text.lower()
        return text if silent else f"{text} (default: %(default)s)"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest option there is, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Replaces argparse's, which prints the usage of every option."""
        known = [option for action in self._actions for option in action.option_strings]
        message = " ".join(message.split())
        wrong = next((word.split("=")[0] for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(wrong, known, n=1) if "unrecognized" in message else []
        hint = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
        self.exit(2, f"{self.prog}: {message}{hint}\n")


def make_parser(
    prog: str,
    description: str,
    *classes: type,
    groups: tuple[str, ...] = (),
    config: bool = False,
    positional: dict[str, str] | None = None,
) -> OneLineParser:
    """A parser with an option for every field of the dataclasses.

    A field's help text may name the group it is listed under, as `quietstar.runs.fields.Help` does, or its
    class does in `_argument_group_name`, as HfArgumentParser has it; what is left goes last.

    Args:
        prog: how the command is called.
        description: what it does.
        classes: dataclasses whose fields HfArgumentParser can parse.
        groups: the order in which groups are listed; others follow.
        config: whether a YAML file may give options too.
        positional: name -> help of what stands before the options; a name with ? may be left out.
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
            help="YAML file of options; flags go before it",
        )
    listed: dict[str, list[dataclasses.Field]] = {title: [] for title in groups}
    for cls in classes:
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            title = getattr(field.metadata.get("help"), "group", getattr(cls, "_argument_group_name", INHERITED))
            if field.init:
                field.type = hints[field.name]
                listed.setdefault(title, []).append(field)
    for title, fields in listed.items():
        group = parser.add_argument_group(title)
        for field in fields:
            HfArgumentParser._parse_dataclass_field(group, field)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str], *classes: type, rest: bool = False) -> tuple[Any, ...]:
    """Instances of the dataclasses, from flags, and from the YAML file that `--config` names.

    With `rest`, last a dictionary of what belongs to none of them; `config` is the file, or None.

    Raises:
        SettingsError: the file cannot be read, or a value in it or in a flag is impossible.
    """
    given = parser.parse_args(argv)
    if hasattr(given, "config"):
        given = parser.parse_args([*from_yaml(given.config, parser), *argv])
    values = {name: value for name, value in vars(given).items() if name != "config"}
    made: list[Any] = []
    own = {field.name for cls in classes for field in dataclasses.fields(cls)}
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        try:
            made.append(cls(**{name: value for name, value in values.items() if name in names}))
        except QuietStarError:
            raise
        except Exception as error:  # whatever transformers finds wrong with its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SettingsError(f"these options do not go together: {reason}") from error
    if rest:
        others = {name: value for name, value in values.items() if name not in own}
        made.append({"config": getattr(given, "config", None), **others})
    return tuple(made)


def from_yaml(file: str, parser: argparse.ArgumentParser) -> list[str]:
    """The flags that a YAML file stands for.

    Raises:
        SettingsError: it cannot be read, is no mapping, or has a key that is no option or a value that is none.
    """
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise SettingsError(f"config {file} is longer than {LONGEST} bytes; give a YAML file of options")
        settings = yaml.load(text.decode(), PlainYaml)
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"config {file} cannot be read: {error.strerror}; give a YAML file") from error
    except Exception as error:  # the YAML library raises many: at tags on values that they do not fit, say
        raise SettingsError(f"config {file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"config {file} holds {type(settings).__name__}; give lines such as 'n_ahead: 8'")
    by_name = {action.dest: action for action in parser._actions}
    known = set(by_name)
    flags = []
    for key, value in settings.items():
        if key not in known or key in ("config", "help"):
            near = difflib.get_close_matches(shown(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"config {file} has {shown(key)}, which is no option{hint}")
        if value is None:
            continue
        if key in RUNS_CODE and value:
            raise SettingsError(
                f"config {file} has {key}, which lets code from elsewhere run; look at that code, and give --{key} on "
                "the command line"
            )
        try:
            if isinstance(value, list):
                flags += [f"--{key}", *map(_word, value)] if value else []
            else:
                flags.append(f"--{key}={_word(value, by_name[key])}")
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"config {file} has {key} {shown(value)}, which would not stand on a command line; mend it"
            ) from error
    return flags


class PlainYaml(yaml.SafeLoader):
    """YAML of options: values that stand where they are used, each key once."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses aliases: with a few of them a short file becomes gigabytes."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "an alias; write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that is there already, of which YAML would keep the last value."""
        times = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, n in times.items() if n > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{shown(twice[0])} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _word(value: Any, action: argparse.Action | None = None) -> str:
    """A value of a YAML file as it would stand on a command line."""
    if isinstance(value, bool) and action is not None and action.type is str:
        return "yes" if value else "no"  # YAML reads them as true and false
    if not isinstance(value, str | int | float | date | dict):
        raise TypeError(f"{type(value).__name__} is no value of an option")
    word = json.dumps(value) if isinstance(value, dict) else str(value)
    if "\0" in word or half_character(word) is not None:
        raise ValueError("it holds what no command line can")
    return word


def say(line: str) -> None:
    """A line for the person at the terminal, beside progress bars and away from results."""
    print(line, file=sys.stderr)
