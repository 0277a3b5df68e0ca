"""Messages and docs name options that there are."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

from quietstar.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*[a-z0-9])(?![\w-])")
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.stem != "log"]
"""a log names options that are gone, too"""
OF_OTHERS = {
    "no-deps": "pip",
    "merge": "llama-gguf-split, and quietstar train",
    "config_file": "accelerate",
    "num_processes": "accelerate",
    "machine_rank": "accelerate",
    "main_process_ip": "accelerate",
    "mixed_precision": "accelerate",
    "num_machines": "accelerate",
    "nproc_per_node": "torchrun",
    "model_args": "lm-eval",
    "build-arg": "docker",
    "rm": "docker",
    "exclude": "hf upload",
    **dict.fromkeys(("out", "rounds", "profile", "minutes", "parts", "rows", "malloc", "smollm2"), "benchmarks"),
}
"""options of other programs that messages and docs name"""


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Options of all commands, as their --help names them."""
    found: set[str] = set()
    for words in ([], ["demo", "--discover"], *([name] for name in COMMANDS)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*words, "--help"])
        found |= set(OPTION.findall(printed.getvalue()))
    return found


def strings_of(file: Path) -> list[tuple[int, str]]:
    """Return the string constants of a module that are not docstrings."""
    tree = ast.parse(file.read_text())
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def test_messages_name_options_that_there_are(options: set[str]) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} --{name}"
        for file in (ROOT / "src").rglob("*.py")
        if file.parent.name != "web"  # names of colours in its style sheets
        for line, text in strings_of(file)
        for name in OPTION.findall(text)
        if name not in options | OF_OTHERS.keys()
    ]
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_options_that_there_are(options: set[str], page: Path) -> None:
    names = set(OPTION.findall(page.read_text(encoding="utf-8")))
    assert names - options - OF_OTHERS.keys() == set()
