"""What is due after a step, what waits for later, and why a run ends early."""

from typing import Any

from quietstar.errors import InterruptedRunError, QuietStarError
from quietstar.runs.processes import Processes
from quietstar.training import checkpoints
from quietstar.training.parts import Part
from quietstar.training.signals import StopSignals


class Schedule(Part):
    """Decides when a checkpoint may be written, and ends a run that is told to stop.

    A checkpoint that is due at a bad step waits for a good one: the weights may be the cause of bad steps, and the
    checkpoint before it would be deleted. One that is due at the last step of an epoch waits until the epoch's line of
    figures and evaluation are done. An evaluation that is due when a signal arrives waits until the run is resumed.

    Attributes:
        signals: notes the signals that end a run; None if nothing does.
        stopped_by: why the run ends after this step; None if it continues.
        evaluation_is_due, checkpoint_is_due: whether one waits.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signals: StopSignals | None = None
        self.stopped_by: QuietStarError | None = None
        self.evaluation_is_due = self.checkpoint_is_due = False

    def end_step(
        self, control: Any, step: int, *, is_bad: bool, ends_epoch: bool, saves: bool, resumable: bool = True
    ) -> None:
        """Set what is due after a step.

        Args:
            control: flags should_save, should_evaluate and should_training_stop.
            step: its number, from 1.
            is_bad: whether the step was bad, and skipped.
            ends_epoch: whether it is the last one of an epoch.
            saves: whether the run writes checkpoints.
            resumable: whether they have an optimizer.
        """
        received = self.signals.received if self.signals is not None else None
        if self.processes.any(received is not None):
            left = f"{checkpoints.name_of(step)} is complete: continue with --resume"
            if not resumable:
                left = f"{checkpoints.name_of(step)} has the model alone (save_only_model), and cannot be resumed from"
            self.stopped_by = InterruptedRunError(
                f"stopped by {received or 'a signal on another process'} after step {step}; "
                f"{left if saves else 'save_strategy is no, and nothing was saved'}"
            )
            self.evaluation_is_due, control.should_evaluate = control.should_evaluate, False
            control.should_save = saves
        self._save_or_wait(control, waits=ends_epoch or (is_bad and not self._is_interrupted))
        control.should_training_stop |= self.stopped_by is not None

    def end_epoch(self, control: Any, *, is_bad: bool, is_complete: bool) -> None:
        """Set what is due after an epoch, which may be incomplete when a run ends.

        Args:
            control: as in `end_step`, and should_log.
            is_bad: whether its last step was bad.
            is_complete: whether all steps of the epoch were made.
        """
        if self.stopped_by is not None:
            continues_here = is_complete and self._is_interrupted  # The resumed run begins with the next epoch.
            self.evaluation_is_due |= control.should_evaluate and continues_here
            control.should_evaluate = control.should_save = False
            control.should_log &= continues_here
        self._save_or_wait(control, waits=is_bad and not self._is_interrupted)

    @property
    def _is_interrupted(self) -> bool:
        return isinstance(self.stopped_by, InterruptedRunError)

    def _save_or_wait(self, control: Any, *, waits: bool) -> None:
        is_due = control.should_save or self.checkpoint_is_due
        control.should_save, self.checkpoint_is_due = is_due and not waits, is_due and waits

    def state_dict(self) -> dict[str, Any]:
        """Return whether an evaluation waits."""
        return {"owes_evaluation": self.evaluation_is_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin or resume a run: nothing stops it yet, and only an evaluation may wait."""
        self.stopped_by, self.checkpoint_is_due = None, False
        self.evaluation_is_due = bool(state["owes_evaluation"])
