"""The package's order: who may import whom, that nothing goes in a circle, and that the tests mirror the source."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "quietstar"

LAYERS = [
    "errors",
    "grid learn",
    "base.sharding base.precision base.untrusted base.sources base.lora base.configs",  # what settings need
    "config",
    "attention",
    "base",
    "text reporting web",
    "runs",
    "heads policy output",
    "journal thought_source",
    "think",
    "talk decode request",
    "predict",
    "objective generation",
    "taught",
    "model",
    "inference interop",
    "evaluation",
    "inspection",
    "training",
    "demo scaling serving",
    "study",
    "cli",
]
"""from the bottom up: a module imports from lower layers, or from its own room"""

UPWARDS = {
    ("model", "inspection"): "model.inspect is a method for convenience; who does not call it loads no inspection",
    ("model", "interop.original"): "from_original and save_original are methods for convenience",
    ("inspection.trace", "inspection.payload"): "a trace writes its page, and the page reads a trace",
}
"""imports inside functions that would close a circle at the top of a module -> why they are there"""

ACROSS = {
    "attention/test_attention.py": "the backends against each other",
    "test_ecosystem.py": "what docs/ecosystem.md says",
    "test_examples.py": "the notebooks of examples/",
    "test_looks.py": "every page in a browser: widths, colours, axe-core's checks, what a screen reader gets",
    "test_messages.py": "options that messages and docs name",
    "test_package.py": "what pip installs",
    "test_site.py": "what make docs builds of docs/",
    "base/gguf/test_commands.py": "GGUF files through the commands",
    "base/untrusted/test_code.py": "three sides of base.untrusted: code that lies beside a model,",
    "base/untrusted/test_configs.py": "configs,",
    "base/untrusted/test_weights.py": "and weights",
    "cli/test_fuzz_yaml.py": "any YAML through every command",
    "cli/test_main.py": "`python -m quietstar`, and what all commands share",
    "evaluation/test_fuzz_files.py": "any files as an evaluation's input",
    "evaluation/test_several.py": "an evaluation on several processes",
    "inspection/test_fuzz_trace.py": "traces over any texts and settings",
    "serving/test_command.py": "`quietstar serve` as a process",
    "serving/test_limits.py": "a server under more than it can take",
    "serving/test_page.py": "the page in a browser",
    "serving/test_ray.py": "the server on Ray, recipes/ray_serve.py",
    "serving/test_server.py": "the server over HTTP",
    "training/test_damaged.py": "resuming from damaged checkpoints",
    "training/test_killed.py": "runs that are killed",
    "training/test_quantized.py": "training over weights in 4 bits",
    "training/test_recipes.py": "the files in recipes/",
    "training/test_several.py": "training on several processes",
    "training/test_seam.py": "private names of transformers that are used",
    "training/test_zero3.py": "training under ZeRO-3",
    "test_benchmarks.py": "the scripts in benchmarks/",
    "test_ci.py": "the hosted workflow",
    "test_constraints.py": "the versions that make installs",
    "test_compile.py": "compiled layers",
    "test_docker.py": "the image of the server",
    "test_families.py": "every family of base models against the plain loop",
    "test_golden.py": "the released code's numbers",
    "test_house.py": "this file",
    "test_readme.py": "the README",
    "test_versions.py": "version, changelog and migration",
    "test_reinforce.py": "the policy loss against the exact expectation of its gradient",
    "test_saving.py": "save_pretrained and from_pretrained",
    "test_scaling_tables.py": "docs/scaling.md",
}
"""test files that mirror no one file of the source -> what they are about"""


@dataclass(frozen=True)
class Import:
    """An import of one module of the package by another, by their names in it ("" is the package itself)."""

    by: str
    of: str
    in_function: bool


@cache
def modules() -> dict[str, Path]:
    """Name in the package -> file."""
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_in(by: str, node: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """Every import under a node, those under TYPE_CHECKING too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"{by} has a relative import"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        else:
            yield from imports_in(by, child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
            continue
        for name in names:
            if name.split(".")[0] == "quietstar":
                of = name.removeprefix("quietstar").removeprefix(".")
                yield Import(by, of if of in modules() else of.rpartition(".")[0], in_function)


@cache
def imports() -> list[Import]:
    """All imports within the package."""
    return [each for name, path in modules().items() for each in imports_in(name, ast.parse(path.read_text()))]


@cache
def at_the_top(by: str) -> frozenset[str]:
    """Modules that a module imports at its top."""
    return frozenset(each.of for each in imports() if each.by == by and not each.in_function)


@cache
def reached(start: str) -> set[str]:
    """Modules that are imported, directly or not, when a module is."""
    found: set[str] = set()
    left = [start]
    while left:
        following = at_the_top(left.pop()) - found
        found |= following
        left += following
    return found


def layer_of(module: str) -> int:
    """The layer that names a module or the nearest room around it."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    while module not in layer:
        assert module, "a module has no layer; add it to LAYERS"
        module = module.rpartition(".")[0]
    return layer[module]


def test_no_module_imports_in_a_circle() -> None:
    """Not even for the type checker."""
    in_circles = {name for name in modules() if name in reached(name)}
    assert in_circles == set()


def test_imports_go_down() -> None:
    """The package's __init__ names what is public, and __main__ starts the commands: both are above all layers."""
    wrong = []
    for each in imports():
        if each.in_function or not each.of or each.by in ("", "__main__"):
            continue
        same_room = each.by.split(".")[0] == each.of.split(".")[0]
        if layer_of(each.of) >= layer_of(each.by) and not (same_room and layer_of(each.of) == layer_of(each.by)):
            wrong.append(f"{each.by} imports {each.of}")
    assert wrong == []


def test_nobody_imports_the_commands() -> None:
    assert {each.by for each in imports() if each.of.split(".")[0] == "cli"} <= {"__main__", *modules_of("cli")}


def modules_of(room: str) -> list[str]:
    return [name for name in modules() if name.split(".")[0] == room]


def test_imports_in_functions_that_point_up_have_a_reason() -> None:
    up = {(each.by, each.of) for each in imports() if each.in_function and each.of and each.by in reached(each.of)}
    assert up == set(UPWARDS)


def test_one_name_is_one_class() -> None:
    classes = Counter(
        node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_no_file_is_longer_than_300_lines() -> None:
    assert [name for name, path in modules().items() if len(path.read_text().splitlines()) > 300] == []


def test_tests_mirror_the_source() -> None:
    tests = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    mirrored = {name for name in tests if (SOURCE / name.replace("test_", "", 1)).is_file()}
    assert tests - mirrored == set(ACROSS)


@pytest.mark.parametrize("name", sorted(path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("__")))
def test_each_module_of_the_paper_has_its_test(name: str) -> None:
    assert (ROOT / "tests" / f"test_{name}.py").is_file()
