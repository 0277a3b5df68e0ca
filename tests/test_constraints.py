"""constraints.txt holds a version of everything that the extra dev asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HOME = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
TEXT = (HOME / "constraints.txt").read_text()
PINS = [Requirement(line) for line in TEXT.splitlines() if not line.startswith("#")]


def asked_for(extra: str) -> set[str]:
    """Return what an extra asks for, with what other extras bring to it."""
    found = set()
    for each in PROJECT["optional-dependencies"][extra]:
        asked = Requirement(each)
        found |= set().union(*map(asked_for, asked.extras)) if asked.name == "quietstar" else {each}
    return found


ASKED_FOR = [Requirement(each) for each in sorted({*PROJECT["dependencies"], *asked_for("dev")})]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("asked", [each for each in ASKED_FOR if each.name != "torch"], ids=str)
def test_every_requirement_has_one_version_that_satisfies_it(asked, python):
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    here |= {"platform_system": "Linux", "platform_machine": "x86_64"}
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(asked.name)]
    (pin,) = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert asked.specifier.contains(Version(exact.version))


def test_it_names_nothing_but_packages_of_any_index():
    assert {"torch", "quietstar"}.isdisjoint(pin.name for pin in PINS)
    assert not [pin for pin in PINS if pin.url or pin.extras]
    assert not re.search(r"://|@|(?m:^-)", TEXT)
    assert "torch" in TEXT.partition("\n\n")[0].split("==")[0], "the first lines say that torch is missing"


def test_make_installs_these_versions():
    makefile = (HOME / "Makefile").read_text()
    assert re.search(r"^PIP := .* --constraint constraints\.txt$", makefile, re.MULTILINE)
    for environment in ("demo", "real", "dev"):
        assert re.search(rf"^\$\(VENV\)/installed-{environment}: .*\bconstraints\.txt", makefile, re.MULTILINE)
