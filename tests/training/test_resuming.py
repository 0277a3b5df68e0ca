"""A checkpoint has the states of parts under their names, or as earlier versions wrote them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerState

from quietstar.errors import CheckpointError, DataError
from quietstar.runs.processes import ALONE, Processes
from quietstar.training import checkpoints
from quietstar.training.resuming import load_states, resuming_from, save_states, save_trainer_state
from tests.training.test_parts import parts_of


def checkpoint_of(run: Path, states: Any = None, step: int = 9) -> Path:
    """A checkpoint with states of parts, of one process."""
    written = run / "written"
    written.mkdir(parents=True)
    if states is None:
        save_states({"schedule": {"owes_evaluation": True}}, written, ALONE)
    else:
        torch.save(states, written / "progress-0.pt")
    checkpoint = run / checkpoints.name_of(step)
    checkpoints.publish(written, checkpoint, {"step": step, "settings": {"world_size": 1}})
    return checkpoint


def test_states_are_loaded_by_the_same_number_of_processes(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    assert load_states(checkpoint, ALONE) == {"schedule": {"owes_evaluation": True}}
    assert load_states(checkpoint, Processes(0, 2)) == {}


EARLIER = {
    "tr_loss": torch.tensor(1.5),
    "logged_at": 6,
    "bad_at_log": 1,
    "total_loss": 10.0,
    "seconds": 60.0,
    "bad_steps": {"count": 2, "in_a_row": 1, "losses": [1.0], "norms": [2.0]},
    "rows_at_once": 4,
    "owes_evaluation": True,
    "epoch_ended": False,
    "grad_norm": 1.0,
    "more": {
        "sums": {"tokens": torch.tensor(7.0)},
        "seconds": 3.0,
        "before": {"eval": torch.ones(3, 2)},
        "health": {"warned": ["drift"], "first_entropy": 1.0, "first_distinct": 0.5, "reward_mean": 0.1},
        "places": [[3, 0, 1, 0]],
        "next_worker": 0,
    },
}


def test_a_checkpoint_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Steps 7 to 9 come after the last line of figures; one of them was bad, and one of the first six."""
    parts = parts_of(tmp_path)
    parts.load_state_dict(load_states(checkpoint_of(tmp_path, EARLIER), ALONE))
    assert (parts.figures.n_steps, parts.figures.total_steps, parts.guard.bad_steps.count) == (2, 5, 2)
    assert (float(parts.figures.loss), parts.figures.seconds, parts.figures.seconds_before) == (1.5, 3.0, 60.0)
    assert (parts.guard.rows_at_once, parts.place.places, parts.schedule.evaluation_is_due) == (4, [[3, 0, 1, 0]], True)
    assert parts.health.warned == ["drift"]
    assert parts.held_out.texts["eval"].before.tolist() == [[1.0, 1.0]] * 3


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
