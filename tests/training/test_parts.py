"""Parts keep their states over a checkpoint, and can be rolled back to the start of a step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quietstar.runs.processes import ALONE
from quietstar.training import QuietStarTrainingArguments
from quietstar.training.parts import Part, Parts
from quietstar.training.run_parts import RunParts
from tests.training.test_trainer import model_of

STATES: dict[str, dict[str, Any]] = {
    "figures": {
        "sums": {"tokens": torch.tensor(7.0)},
        "loss": torch.tensor(1.5),
        "n_steps": 2,
        "seconds": 3.0,
        "total_loss": 4.0,
        "total_steps": 5,
    },
    "guard": {"count": 3, "in_a_row": 1, "losses": [1.0], "norms": [2.0], "rows_at_once": 4},
    "held_out": {"eval": torch.ones(3, 2), "eval_other": None},
    "place": {"places": [[3, 0, 1, 0]], "next_worker": 0},
    "schedule": {"owes_evaluation": True},
    "health": {
        "warned": ["drift"],
        "first_entropy": 1.0,
        "first_distinct": 0.5,
        "first_length": 6.0,
        "reward_mean": -0.1,
    },
    "reference": {},
    "rollouts": {"earlier": [{"thoughts": torch.ones(2, 2, 3, 1), "advantage": torch.ones(2, 2, 3)}]},
}


def parts_of(folder: Path) -> RunParts:
    return RunParts(QuietStarTrainingArguments(output_dir=str(folder), use_cpu=True), ALONE, None)


def without_clock(states: dict[str, dict[str, Any]]) -> str:
    return repr({name: {key: state[key] for key in state if key != "run_seconds"} for name, state in states.items()})


def test_every_part_resumes_from_its_state(tmp_path: Path) -> None:
    """What a checkpoint holds is read without running code."""
    parts, again = parts_of(tmp_path), parts_of(tmp_path)
    states = STATES | {"figures": STATES["figures"] | {"run_seconds": 60.0}}
    assert parts.by_name().keys() == states.keys()
    parts.load_state_dict(states)
    torch.save(parts.state_dict(), tmp_path / "states.pt")
    again.load_state_dict(torch.load(tmp_path / "states.pt", weights_only=True))
    assert without_clock(again.state_dict()) == without_clock(states)
    assert again.state_dict()["figures"]["run_seconds"] == pytest.approx(60.0, abs=5.0)


def test_a_new_run_begins_with_fresh_parts(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts.load_state_dict(STATES | {"figures": STATES["figures"] | {"run_seconds": 60.0}})
    parts.reset()
    assert without_clock(parts.state_dict()) == without_clock(parts_of(tmp_path).state_dict())
    assert parts.figures.seconds_before == 0


def test_a_step_is_rolled_back_and_the_steps_before_it_are_not(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    labels = torch.zeros(2, 5, dtype=torch.long)
    parts.figures.tally.sums = {"tokens": torch.tensor(7.0)}
    model = model_of()
    parts.begin_step([{"input_ids": labels, "labels": labels}], 3, model, model)
    parts.figures.tally.sums |= {"tokens": torch.tensor(9.0), "base_nll": torch.tensor(1.0)}
    parts.rollback_step()
    assert parts.figures.tally.sums == {"tokens": torch.tensor(7.0)}


def test_a_part_may_keep_nothing() -> None:
    parts = Parts()
    parts.idle = Part()  # type: ignore[attr-defined]
    parts.load_state_dict(parts.state_dict())
    parts.rollback(parts.snapshot())
    assert parts.state_dict() == {"idle": {}}


def test_a_step_counts_its_labels_and_chooses_where_to_think(tmp_path: Path) -> None:
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True, think_fraction=0.5)
    parts = RunParts(args, ALONE, None)
    batches = [{"input_ids": torch.ones(1, 9, dtype=torch.long)} for _ in range(3)]
    for batch in batches:
        batch["labels"] = batch["input_ids"]
    model = model_of()
    counts = parts.begin_step(batches, 0, model, model)
    assert counts.base == 3 * 8
    assert counts.talk.tolist() == [12, sum(int(batch["think_at"][0, :7].sum()) for batch in batches)]
    assert len({tuple(batch["think_at"][0].tolist()) for batch in batches}) > 1
    assert parts.begin_step([], 1, model, model) is None
    assert all("n_ahead" not in batch for batch in batches)


def test_a_step_chooses_how_long_to_think(tmp_path: Path) -> None:
    parts = RunParts(QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True, n_ahead_min=2), ALONE, None)
    model, drawn = model_of(n_ahead=6), set()
    for step in range(40):
        batches = [dict.fromkeys(("input_ids", "labels"), torch.ones(1, 9, dtype=torch.long)) for _ in range(2)]
        parts.begin_step(batches, step, model, model)
        assert batches[0]["n_ahead"] == batches[1]["n_ahead"]
        drawn.add(batches[0]["n_ahead"])
    assert drawn == {2, 3, 4, 5, 6}
