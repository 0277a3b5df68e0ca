"""A checkpoint is complete, or nothing of it is left."""

import errno
from pathlib import Path

import pytest

from quietstar.errors import CheckpointError
from quietstar.runs.processes import ALONE
from quietstar.training import checkpoints
from quietstar.training.checkpointer import Checkpointer


def checkpointer_of(run: Path, n_kept: int | None = None) -> Checkpointer:
    return Checkpointer(run, ALONE, publishes=True, n_kept=n_kept)


def write_a_file(folder: Path) -> None:
    (folder / "file").write_text("content")


def test_a_checkpoint_has_its_files_and_a_marker(tmp_path: Path) -> None:
    found = checkpointer_of(tmp_path).write(3, write_a_file, {"settings": {"seed": 1}}, None)
    assert found == tmp_path / "checkpoint-3"
    marker = checkpoints.read_marker(found)
    assert (marker["step"], marker["settings"], marker["files"]) == (3, {"seed": 1}, {"file": 7})
    assert not (tmp_path / checkpoints.TEMPORARY).exists()


def test_a_checkpoint_is_written_once(tmp_path: Path) -> None:
    checkpointer = checkpointer_of(tmp_path)
    checkpointer.write(3, write_a_file, {}, None)
    assert checkpointer.write(3, lambda folder: pytest.fail("written again"), {}, None) is None


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpointer = checkpointer_of(tmp_path, n_kept=1)
    best = None
    for step in (1, 2, 3):
        best = best or checkpointer.path_of_best(1, step)
        checkpointer.write(step, write_a_file, {}, best)
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-1"]
    assert checkpointer.path_of_best(1, 3) == str(tmp_path / "checkpoint-1")
    assert checkpointer.path_of_best(2, 3) is None
    checkpointer.delete_old(tmp_path / "checkpoint-3", None)
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("number", "told"), [(errno.ENOSPC, "checkpoint-1 is complete: make room"), (errno.EACCES, "is complete: fix that")]
)
def test_a_failed_write_leaves_nothing(tmp_path: Path, number: int, told: str) -> None:
    def fail(folder: Path) -> None:
        write_a_file(folder)
        raise OSError(number, "no")

    checkpointer = checkpointer_of(tmp_path)
    checkpointer.write(1, write_a_file, {}, None)
    with pytest.raises(
        CheckpointError, match=rf"checkpoint-2 cannot be written \(.*{told}, and continue with --resume"
    ):
        checkpointer.write(2, fail, {}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
