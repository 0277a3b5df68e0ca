"""The command line: its options and its errors."""

import logging
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from quietstar.cli import main

ROWS = ("rows to train on", "rows held out", "training on a stream")
"""messages of progress while a run reads its text"""


def call(*argv: object) -> int:
    """Run the command in this process, and return its exit code."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


def no_progress_bars() -> None:
    """Turn off progress bars of other libraries, which are not messages."""
    transformers_logging.disable_progress_bar()
    pytest.importorskip("datasets", reason="datasets is not installed (extra: data)").disable_progress_bars()


def lines_of(capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the user reads on the terminal, without progress: errors and log messages."""
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    out, err = capfd.readouterr()
    assert out == ""
    return [line for line in [*logged, *err.strip().splitlines()] if not any(words in line for words in ROWS)]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
