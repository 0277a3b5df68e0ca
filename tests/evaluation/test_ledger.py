"""A ledger keeps every finished answer, whichever process wrote it, and refuses files of other kinds."""

import json
from pathlib import Path
from typing import Any

import pytest

from quietstar.errors import CheckpointError
from quietstar.evaluation.ledger import Ledger
from quietstar.runs.processes import Processes


def answer(index: int) -> dict[str, Any]:
    line = {"index": index, "item": "x", "gold": "4", "answer": "4", "right": True}
    return line | {"votes": ["4"], "texts": [" 4"], "seconds": 0.1}


def test_answers_are_kept(tmp_path: Path) -> None:
    """In the next ledger of the same file, without an incomplete last line."""
    path = tmp_path / "a.jsonl"
    for index in range(2):
        Ledger(path).add(answer(index))
    with path.open("a") as file:
        file.write('{"index": 2, "gold": "')
    assert Ledger(path).answers == {0: answer(0), 1: answer(1)}
    assert len(path.read_text().splitlines()) == 2


def test_files_of_several_processes_become_one(tmp_path: Path) -> None:
    """When the ledger is opened again, in the order of the questions."""
    path = tmp_path / "a.jsonl"
    for rank in (1, 0):
        ledger = Ledger(path)
        ledger.processes = Processes(rank, 2)
        ledger.add(answer(rank))
        assert ledger.own_path.name == f"a.rank-{rank}.jsonl"
    assert Ledger(path).answers == {0: answer(0), 1: answer(1)}
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [answer(0), answer(1)]


def test_a_file_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    """There is one line, and the file does not change."""
    (tmp_path / "a.jsonl").write_text('{"name": 1}\n')
    with pytest.raises(CheckpointError, match="line 1"):
        Ledger(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == '{"name": 1}\n'
