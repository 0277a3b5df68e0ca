"""The command itself, in its own process and in this one."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import quietstar
from quietstar.cli import COMMANDS
from tests.cli import call
from tests.tiny_tokenizer import tiny_folder

CONSOLE = Path(sys.executable).with_name("quietstar")


def test_as_a_module(monkeypatch, capsys):
    """Run what `python -m quietstar` runs, without importing torch again in another process."""
    monkeypatch.setattr(sys, "argv", ["quietstar", "trian", "--n_ahead", "4"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("quietstar", run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "quietstar: unknown command 'trian'; did you mean train?\n"
    assert call("xyz") == 2
    assert capsys.readouterr().err == f"quietstar: unknown command 'xyz'; choose from {', '.join(COMMANDS)}\n"


def test_a_whole_run_in_a_process_of_its_own(tmp_path):
    tiny_folder(tmp_path / "base", "mistral")
    (tmp_path / "texts.txt").write_text("".join(f"{i} and {i} is {2 * i}\n" for i in range(20)))
    files = ("--model", "base", "--dataset", "texts.txt", "--output_dir", "run")
    steps = ("--eval_size", 4, "--max_steps", 1, "--gradient_accumulation_steps", 2, "--logging_steps", 1)
    command = [CONSOLE if CONSOLE.exists() else "quietstar", "train", *files, *steps, "--n_ahead", 3]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    done = subprocess.run(
        [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "step     0  held out  loss " in done.stdout
    assert "step     1  training  loss " in done.stdout
    assert "16 rows to train on; 0 texts too short for one prediction were skipped" in done.stderr
    assert "thoughts on held-out text" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("saved to run; held-out text, nats a token: ")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "arning" not in done.stderr, "a first run that warns looks broken"


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)], ids=str)
def test_help_lists_every_command(argv, capsys):
    assert call(*argv) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: quietstar COMMAND")
    for command, what in COMMANDS.items():
        assert f"  {command}" in said
        assert what in said


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"quietstar {quietstar.__version__}\n"


def test_stopping_by_hand_is_one_line(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("quietstar.cli.train.main", stopped)
    assert call("train") == 130
    assert capsys.readouterr().err == "quietstar train: stopped\n"


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    def refused(argv):
        raise quietstar.errors.DataError("one\n  two\n\nthree")

    monkeypatch.setattr("quietstar.cli.train.main", refused)
    assert call("train") == 2
    assert capsys.readouterr().err == "quietstar train: one two three\n"
