"""A line of figures is of the good steps since the last one, and the last line is of the whole run."""

import pytest
import torch

from quietstar.runs.processes import ALONE
from quietstar.training.figures import TrainingFigures


def step(figures: TrainingFigures, *losses: float) -> None:
    figures.add_step([torch.tensor(loss) for loss in losses])


def line(figures: TrainingFigures, n_bad: int = 0) -> dict[str, float]:
    logged = {"loss": 99.0}
    figures.complete(logged, 0.5, n_bad)
    return logged


def test_a_loss_is_a_mean_over_good_steps() -> None:
    figures = TrainingFigures(ALONE)
    step(figures, 1.0, 2.0)
    step(figures, 5.0, 2.0)
    assert line(figures, n_bad=1) == {"loss": 5.0, "bad_steps": 1}
    assert line(figures, n_bad=2) == {"bad_steps": 2}
    step(figures, 2.0)
    last = {"train_loss": 99.0, "train_runtime": 10.0}
    figures.summarize(last, 5, 8)
    assert last == {"train_loss": 4.0, "train_runtime": 10.0}


def test_the_time_of_a_resumed_run_is_that_of_the_whole_run() -> None:
    figures = TrainingFigures(ALONE)
    state = figures.state_dict()
    assert state["run_seconds"] == 0
    figures.load_state_dict(state | {"run_seconds": 30.0, "total_loss": 6.0, "total_steps": 2})
    last = {"train_loss": 99.0, "train_runtime": 10.0, "train_steps_per_second": 1.0, "train_samples_per_second": 1.0}
    figures.summarize(last, 20, 8)
    assert last == {
        "train_loss": 3.0,
        "train_runtime": 40.0,
        "train_steps_per_second": 0.5,
        "train_samples_per_second": 4.0,
    }


def test_only_time_within_counts() -> None:
    figures = TrainingFigures(ALONE)
    with figures.timed():
        pass
    assert 0 < figures.seconds == pytest.approx(0, abs=1)
