"""When a checkpoint is written, when an evaluation waits, and how a run ends early."""

from types import SimpleNamespace
from typing import Any

import pytest

from quietstar.errors import BadStepsError, InterruptedRunError
from quietstar.runs.processes import ALONE
from quietstar.training.schedule import Schedule


def control(**due: bool) -> Any:
    flags = dict(should_save=False, should_evaluate=False, should_log=False, should_training_stop=False)
    return SimpleNamespace(**flags | due)


def interrupted() -> Schedule:
    schedule = Schedule(ALONE)
    schedule.signals = SimpleNamespace(received="SIGTERM")  # type: ignore[assignment]
    return schedule


def step(schedule: Schedule, flags: Any, *, is_bad: bool = False, ends_epoch: bool = False, saves: bool = True) -> Any:
    schedule.end_step(flags, 7, is_bad=is_bad, ends_epoch=ends_epoch, saves=saves)
    return flags


def test_a_checkpoint_that_is_due_is_written() -> None:
    assert step(Schedule(ALONE), control(should_save=True)).should_save
    assert not step(Schedule(ALONE), control()).should_save


def test_a_checkpoint_waits_for_a_good_step() -> None:
    schedule = Schedule(ALONE)
    assert not step(schedule, control(should_save=True), is_bad=True).should_save
    assert not step(schedule, control(), is_bad=True).should_save
    assert step(schedule, control()).should_save
    assert not step(schedule, control()).should_save


def test_a_checkpoint_of_the_last_step_waits_for_the_end_of_the_epoch() -> None:
    schedule, end = Schedule(ALONE), control(should_evaluate=True)
    assert not step(schedule, control(should_save=True), ends_epoch=True).should_save
    schedule.end_epoch(end, is_bad=False, is_complete=True)
    assert (end.should_save, end.should_evaluate) == (True, True)


@pytest.mark.parametrize("is_bad", [False, True])
def test_a_signal_saves_at_once_and_delays_an_evaluation(is_bad: bool) -> None:
    schedule = interrupted()
    flags = step(schedule, control(should_evaluate=True), is_bad=is_bad)
    assert (flags.should_save, flags.should_evaluate, flags.should_training_stop) == (True, False, True)
    assert schedule.state_dict() == {"owes_evaluation": True}
    assert isinstance(schedule.stopped_by, InterruptedRunError)
    assert (
        str(schedule.stopped_by) == "stopped by SIGTERM after step 7; checkpoint-7 is complete: continue with --resume"
    )
    end = control(should_log=True, should_evaluate=True, should_save=True)
    schedule.end_epoch(end, is_bad=is_bad, is_complete=False)
    assert (end.should_log, end.should_evaluate, end.should_save) == (False, False, False)


def test_a_signal_at_the_end_of_an_epoch_saves_after_the_last_line_of_figures() -> None:
    schedule = interrupted()
    assert not step(schedule, control(), ends_epoch=True).should_save
    end = control(should_log=True, should_evaluate=True)
    schedule.end_epoch(end, is_bad=False, is_complete=True)
    assert (end.should_log, end.should_evaluate, end.should_save) == (True, False, True)
    assert schedule.evaluation_is_due


def test_without_checkpoints_a_signal_saves_nothing() -> None:
    schedule = interrupted()
    assert not step(schedule, control(), saves=False).should_save
    assert str(schedule.stopped_by).endswith("save_strategy is no, and nothing was saved")


def test_a_run_that_ends_with_bad_steps_saves_and_evaluates_nothing() -> None:
    schedule = Schedule(ALONE)
    schedule.stopped_by = BadStepsError("too many")
    assert step(schedule, control(should_save=True), is_bad=True).should_training_stop
    end = control(should_log=True, should_evaluate=True, should_save=True)
    schedule.end_epoch(end, is_bad=True, is_complete=True)
    assert (end.should_log, end.should_evaluate, end.should_save) == (False, False, False)
    assert not schedule.evaluation_is_due


def test_a_checkpoint_without_an_optimizer_is_not_said_to_continue() -> None:
    schedule = interrupted()
    schedule.end_step(control(), 7, is_bad=False, ends_epoch=False, saves=True, resumable=False)
    assert str(schedule.stopped_by).endswith(
        "checkpoint-7 has the model alone (save_only_model), and cannot be resumed from"
    )
