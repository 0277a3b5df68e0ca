"""What a shell offers at TAB, asked as argcomplete's shell function asks."""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import quietstar
from quietstar.cli import COMMANDS
from quietstar.cli.completion import described, options_of
from quietstar.learn import ADVANTAGES

HEAVY = ("torch", "transformers", "numpy")


def ask(line: str, cache: Path) -> tuple[list[str], set[str]]:
    """Return what is offered after a line, and which heavy libraries were imported to say so."""
    surroundings = os.environ | {
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": str(Path(quietstar.__file__).parents[1]),
    }
    code = "from quietstar.cli import main; main()"
    done = subprocess.run(
        ["bash", "-c", '"$0" -X importtime -c "$1" 8>&1', sys.executable, code],
        env=surroundings,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=300,
    )
    imported = {said.rsplit("|", 1)[-1].strip() for said in done.stderr.splitlines()}
    return done.stdout.split(), imported & set(HEAVY)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """Return a cache in which the options of all commands are."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        options_of(COMMANDS)
    return cache


def test_the_commands_need_neither_cache_nor_torch(tmp_path):
    assert ask("quietstar ", tmp_path) == (list(COMMANDS), set())
    assert ask("quietstar e", tmp_path) == (["evaluate", "export", "env"], set())
    assert not list(tmp_path.iterdir())


def test_options_and_their_choices_come_from_the_cache(filled):
    assert ask("quietstar train --lora_", filled) == (
        ["--lora_r", "--lora_alpha", "--lora_dropout", "--lora_target_modules"],
        set(),
    )
    assert ask("quietstar export here there --to ", filled) == (["gguf", "plain"], set())
    assert ask("quietstar train --resume ", filled)[0] == ["true", "false"]
    assert ask("quietstar train --advantage ", filled)[0] == list(ADVANTAGES)
    assert ask("quietstar inspect here --interventions removed s", filled)[0] == ["shuffled", "swapped"]
    assert ask("quietstar train ", filled)[0] == [], "no positional argument; options only after a dash"


@pytest.mark.slow
def test_the_first_one_finds_them_itself(tmp_path, filled):
    offered, imported = ask("quietstar generate some --max_", tmp_path)
    assert offered == ["--max_new_tokens"]
    assert imported == set(HEAVY)
    (kept,) = tmp_path.rglob("*.json")
    assert json.loads(kept.read_text()) == json.loads((filled / "quietstar" / "options.json").read_text())
    assert ask("quietstar generate some --max_", tmp_path) == (offered, set())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command(command, filled, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    parser = importlib.import_module(f"quietstar.cli.{command}").parser()
    names = {(action.option_strings or [action.dest])[0] for action in parser._actions} - {"-h"}
    assert {option["name"] for option in options_of(COMMANDS)[command]} == names
    assert described(parser) == options_of(COMMANDS)[command]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["another package", "another transformers", "a changed source"])
def test_what_is_kept_is_used_only_where_it_is_true(place, filled, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    file = filled / "quietstar" / "options.json"
    kept = json.loads(file.read_text())
    assert kept["source"][1] == version("transformers")
    other = kept | {"options": {command: [] for command in COMMANDS}}
    file.write_text(json.dumps(other))
    assert options_of(COMMANDS) == other["options"]
    other["source"] = ["another" if i == place else value for i, value in enumerate(kept["source"])]
    file.write_text(json.dumps(other))
    assert options_of(COMMANDS) == kept["options"]
    assert json.loads(file.read_text()) == kept


@pytest.mark.parametrize("damaged", ["", "["])
def test_a_damaged_file_is_written_again(damaged, filled, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    file = filled / "quietstar" / "options.json"
    kept = file.read_text()
    file.write_text(damaged)
    assert options_of(COMMANDS) == json.loads(kept)["options"]
    assert file.read_text() == kept


def test_completion_for_all_programs_finds_it():
    """`activate-global-python-argcomplete` looks for a mark at the top of the entry point's module."""
    module = Path(quietstar.__file__).parent / "cli" / "__init__.py"
    assert "PYTHON_ARGCOMPLETE_OK" in module.read_text()[:1024]
