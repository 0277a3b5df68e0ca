"""A checkpoint has the states of parts under their names."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerState

from quietstar.errors import CheckpointError, DataError
from quietstar.runs.processes import ALONE, Processes
from quietstar.training import checkpoints
from quietstar.training.resuming import load_states, resuming_from, save_states, save_trainer_state


def test_states_are_loaded_by_the_same_number_of_processes(tmp_path: Path) -> None:
    written, checkpoint = tmp_path / "written", tmp_path / checkpoints.name_of(9)
    written.mkdir()
    save_states({"schedule": {"owes_evaluation": True}}, written, ALONE)
    checkpoints.publish(written, checkpoint, {"step": 9, "settings": {"world_size": 1}})
    assert load_states(checkpoint, ALONE) == {"schedule": {"owes_evaluation": True}}
    assert load_states(checkpoint, Processes(0, 2)) == {}


def test_a_damaged_file_is_reported_in_one_line() -> None:
    told = r"^cannot resume from checkpoint-3 \(.*\): a file in it is damaged"
    with pytest.raises(CheckpointError, match=told), resuming_from("checkpoint-3"):
        torch.load("nothing", weights_only=True)
    for error in (DataError("a"), torch.OutOfMemoryError("b")):
        with pytest.raises(type(error)), resuming_from("checkpoint-3"):
            raise error


def test_transformers_can_read_the_states_of_callbacks(tmp_path: Path) -> None:
    patience = EarlyStoppingCallback(5)
    save_trainer_state(TrainerState(), [patience, SimpleNamespace()], tmp_path)  # type: ignore[list-item]
    found = TrainerState.load_from_json(str(tmp_path / "trainer_state.json")).stateful_callbacks
    assert found == {"EarlyStoppingCallback": patience.state()}
