"""The workflow tests the lowest versions that pyproject.toml allows, and lets in all that it allows."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

HOME = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
MATRIX = yaml.safe_load((HOME / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_lowest_and_newest_versions_are_those_of_the_project(name: str) -> None:
    (allowed,) = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == name]
    limits = {each.operator: each.version for each in allowed.specifier}
    rows = {
        row["versions"]: {each.name: each for each in map(Requirement, row["requirements"].split())}
        for row in MATRIX["include"]
    }
    assert str(rows["lowest"][name].specifier) == f"=={limits['>=']}.*"
    assert str(rows["newest"][name].specifier) == f"<{limits['<']}"


def test_the_oldest_and_the_newest_python() -> None:
    limits = {
        each.operator: Version(each.version) for each in Requirement(f"python{PROJECT['requires-python']}").specifier
    }
    oldest, newest = map(Version, MATRIX["python"])
    assert oldest == limits[">="]
    assert (newest.major, newest.minor + 1) == (limits["<"].major, limits["<"].minor)
