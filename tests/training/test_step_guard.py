"""A step that does not fit into memory is repeated in pieces, with the same result."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quietstar.errors import OutOfMemoryError
from quietstar.training import QuietStarTrainer
from tests.training.test_trainer import (
    LENGTHS,
    arguments,
    furthest,
    losses_of,
    model_of,
    parameters_of,
    rows,
    trained,
    with_thoughts,
)


def with_room_for(n_rows: int, *, backward: bool = False) -> pytest.MonkeyPatch:
    """Raise out-of-memory errors in passes over more rows, in the forward pass or after the backward pass."""
    patch, compute = pytest.MonkeyPatch(), QuietStarTrainer.compute_loss

    def compute_or_fail(self: QuietStarTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training and len(inputs["input_ids"]) > n_rows:
            if backward:
                compute(self, model, inputs, *args, **kwargs).backward()
            raise torch.OutOfMemoryError("out of memory")
        return compute(self, model, inputs, *args, **kwargs)

    patch.setattr(QuietStarTrainer, "compute_loss", compute_or_fail)
    return patch


SGD = dict(optim="sgd", learning_rate=0.1, max_steps=3)


@pytest.mark.parametrize(("n_rows", "at_once"), [(2, 2), (1, 1), (3, 2)])
@pytest.mark.parametrize("backward", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_in_pieces_equals_the_whole_step(
    tmp_path: Path, n_rows: int, at_once: int, backward: bool, accumulated: int
):
    texts = with_thoughts(rows(*LENGTHS))
    how = SGD | dict(per_device_train_batch_size=8 // accumulated, gradient_accumulation_steps=accumulated)
    whole = trained(tmp_path, texts, **how)
    with (patch := with_room_for(n_rows, backward=backward)).context():
        halved = trained(tmp_path, texts, **how, auto_micro_batch=True)
    patch.undo()
    assert halved.parts.guard.rows_at_once == at_once
    assert losses_of(halved) == pytest.approx(losses_of(whole), rel=1e-5)
    for name in ("nll", "policy_loss", "mixing_weight"):
        assert losses_of(halved, name) == pytest.approx(losses_of(whole, name), rel=1e-4)
    assert furthest(parameters_of(halved), parameters_of(whole)) < 1e-4
    assert furthest(parameters_of(whole), dict(model_of().named_parameters())) > 1e-2


def test_pieces_of_a_batch_think_as_long_as_it_does(tmp_path: Path):
    """Start and end alone: nothing is sampled that could differ."""
    how = SGD | dict(per_device_train_batch_size=4, auto_micro_batch=True, n_ahead_min=2)
    whole = trained(tmp_path, rows(*LENGTHS), model_of(n_ahead=2), **how)
    with (patch := with_room_for(1)).context():
        halved = trained(tmp_path, rows(*LENGTHS), model_of(n_ahead=2), **how)
    patch.undo()
    assert halved.parts.guard.rows_at_once == 1
    assert furthest(parameters_of(halved), parameters_of(whole)) < 1e-4


@pytest.mark.parametrize(
    ("n_rows", "settings", "told"),
    [
        (2, {}, r"with 4 rows of 30 tokens at once: lower --per_device_train_batch_size \(--grad.*--auto_micro_batch"),
        (0, dict(auto_micro_batch=True), r"with 1 rows of 30 tokens at once: lower --max_length or --think_fraction"),
    ],
)
def test_too_large_a_batch_is_reported_in_one_line(tmp_path: Path, n_rows: int, settings: dict, told: str):
    patch = with_room_for(n_rows)
    with patch.context(), pytest.raises(OutOfMemoryError, match=f"out of memory at step 1, {told}"):
        trained(tmp_path, rows(30, 30, 30, 30), per_device_train_batch_size=4, **settings)
    patch.undo()


def test_an_evaluation_that_does_not_fit_names_its_own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(QuietStarTrainer, "prediction_step", fail)
    made = QuietStarTrainer(model_of(), arguments(tmp_path), eval_dataset=rows(5, 6))
    with pytest.raises(OutOfMemoryError, match=r"in an evaluation after step 0.*lower --per_device_eval_batch_size"):
        made.evaluate()


def test_other_errors_are_raised_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(QuietStarTrainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="something else"):
        trained(tmp_path, rows(5, 6), auto_micro_batch=True)
