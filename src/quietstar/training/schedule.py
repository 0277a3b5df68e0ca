"""What is due after a step, what was put off, and why a run ends early."""

from typing import Any

from quietstar.errors import InterruptedRunError, QuietStarError
from quietstar.runs.processes import Processes
from quietstar.training import checkpoints
from quietstar.training.parts import Part
from quietstar.training.signals import StopSignals


class Schedule(Part):
    """Decides when a checkpoint may be written, and ends a run that is told to stop.

    A checkpoint that is due at a bad step waits for a good one: the weights may be the cause of bad steps, and the
    checkpoint before would be deleted. One that is due at the last step of an epoch waits for what the end of the epoch
    brings. An evaluation that is due when a signal arrives is put off until the run is resumed.

    Args:
        processes: of the run.

    Attributes:
        signals: notes the signals that end a run; None where nobody listens.
        stopped_by: why the run ends after this step; None where it goes on.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signals: StopSignals | None = None
        self.stopped_by: QuietStarError | None = None
        self.owes_evaluation = self.owes_checkpoint = False

    def end_step(self, control: Any, step: int, *, is_bad: bool, ends_epoch: bool, saves: bool) -> None:
        """Set what is due after a step.

        Args:
            control: flags should_save, should_evaluate and should_training_stop.
            step: its number, from 1.
            is_bad: whether the optimizer was kept from it.
            ends_epoch: whether it is the last one of an epoch.
            saves: whether the run writes checkpoints.
        """
        received = self.signals.received if self.signals is not None else None
        if self.processes.any(received is not None):
            left = f"{checkpoints.name_of(step)} is whole: continue with --resume"
            self.stopped_by = InterruptedRunError(
                f"stopped by {received or 'a signal on another process'} after step {step}; "
                f"{left if saves else 'save_strategy is no, and nothing was saved'}"
            )
            self.owes_evaluation, control.should_evaluate = control.should_evaluate, False
            control.should_save = saves
        self._put_off(control, waits=ends_epoch or (is_bad and not self._is_interrupted))
        control.should_training_stop |= self.stopped_by is not None

    def end_epoch(self, control: Any, *, is_bad: bool, ends_epoch: bool) -> None:
        """Set what is due when the steps of an epoch are done, or when a run ends within one.

        Args:
            control: as in `end_step`, and should_log.
            is_bad: as in `end_step`, of the last step.
            ends_epoch: whether the epoch is complete.
        """
        if self.stopped_by is not None:
            makes_up = ends_epoch and self._is_interrupted
            self.owes_evaluation |= control.should_evaluate and makes_up
            control.should_evaluate = control.should_save = False
            control.should_log &= makes_up
        self._put_off(control, waits=is_bad and not self._is_interrupted)

    @property
    def _is_interrupted(self) -> bool:
        return isinstance(self.stopped_by, InterruptedRunError)

    def _put_off(self, control: Any, *, waits: bool) -> None:
        due = control.should_save or self.owes_checkpoint
        control.should_save, self.owes_checkpoint = due and not waits, due and waits

    def state_dict(self) -> dict[str, Any]:
        """Return whether an evaluation was put off."""
        return {"owes_evaluation": self.owes_evaluation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin or resume a run: nothing else is put off, and nothing stops it yet."""
        self.stopped_by, self.owes_checkpoint = None, False
        self.owes_evaluation = bool(state["owes_evaluation"])
