"""The trackers that a run reports to: resumed, it goes on in its run there, and its reports of thoughts go there, too.

transformers' callbacks send the figures; what they leave out is here. Each tracker is imported where it is used.
"""

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.utils import patch_environment
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from quietstar.errors import InterruptedRunError, SettingsError, first_line
from quietstar.training import checkpoints

logger = logging.getLogger(__name__)

TEXT = "summary.md"
"""file of a report that is text"""


class Tracker:
    """A tracker of a run.

    Args:
        callback: transformers' own, which sends the figures.
        trainer: of the run.
    """

    def __init__(self, callback: Any, trainer: Any) -> None:
        self.callback, self.trainer, self.args = callback, trainer, trainer.args

    def current(self) -> str | None:
        """Return what the tracker knows its present run by; None if there is none."""
        raise NotImplementedError

    def begin(self, state: Any) -> None:
        """Begin a new run, as transformers' callback would a little later."""
        self.callback.setup(self.args, state, self.trainer.model)

    def resume(self, run: str) -> None:
        """Go on in a run, unless the user has opened one."""
        raise NotImplementedError

    def reopen(self, run: str) -> None:
        """Make sure that figures after the end of training go to the run, too."""

    def end(self, run: str, error: BaseException | None) -> None:
        """End a run; error is what ended it early."""

    def add_report(self, folder: Path, step: int) -> None:
        """Add a report of thoughts, the files of a folder, to the present run."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """A run is a folder, as it is called from that of the training run, which may be moved."""

    def begin(self, state: Any) -> None:
        """Leave it to transformers' callback: a folder needs no login."""

    def current(self) -> str | None:
        """Return the folder's path."""
        writer = self.callback.tb_writer
        return writer and os.path.relpath(writer.get_logdir(), self.args.output_dir)

    def resume(self, run: str) -> None:
        """Write into the same folder; what it has of later steps is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        if self.callback.tb_writer is None and self.callback.logging_dir is None:
            self.callback.logging_dir = os.path.normpath(Path(self.args.output_dir, run))
            self.callback.tb_writer = SummaryWriter(
                self.callback.logging_dir, purge_step=self.trainer.state.global_step + 1
            )

    def add_report(self, folder: Path, step: int) -> None:
        """Add the report's text: a TensorBoard has no files."""
        self.callback.tb_writer.add_text("thoughts", (folder / TEXT).read_text(encoding="utf-8"), step)
        self.callback.tb_writer.flush()


class Wandb(Tracker):
    """A run has an id."""

    def current(self) -> str | None:
        """Return the id."""
        import wandb

        return None if wandb.run is None else wandb.run.id

    def resume(self, run: str) -> None:
        """Open the run as transformers would, by its id."""
        import wandb

        if wandb.run is None and "WANDB_RUN_ID" not in os.environ:
            project = os.getenv("WANDB_PROJECT", "huggingface")
            wandb.init(project=project, name=self.args.run_name, id=run, resume="allow")

    def end(self, run: str, error: BaseException | None) -> None:
        """End it, or the next run of this process, such as a curriculum's next stage, would go on in it."""
        import wandb

        if self.current() == run:
            wandb.finish(exit_code=0 if error is None else getattr(error, "exit_code", 1))

    def add_report(self, folder: Path, step: int) -> None:
        """Add a version of one artifact."""
        import wandb

        artifact = wandb.Artifact(f"thoughts-{self.current()}", type="thoughts", metadata={"step": step})
        artifact.add_dir(str(folder))
        wandb.log_artifact(artifact, aliases=[folder.name])


class MLflow(Tracker):
    """A run has an id."""

    def current(self) -> str | None:
        """Return the id."""
        import mlflow

        run = mlflow.active_run()
        return None if run is None else str(run.info.run_id)

    def resume(self, run: str) -> None:
        """Have transformers open the run, if the store still has it; a run there cannot get other parameters."""
        import mlflow

        if mlflow.active_run() is not None or "MLFLOW_RUN_ID" in os.environ:
            return
        try:
            is_there = mlflow.MlflowClient().get_run(run).info.lifecycle_stage == "active"
        except mlflow.MlflowException:
            is_there = False
        if is_there:
            with patch_environment(MLFLOW_RUN_ID=run, MLFLOW_MAX_LOG_PARAMS="0"):
                self.callback.setup(self.args, self.trainer.state, self.trainer.model)
        else:
            logger.warning("MLflow at %s has no run %s: a new one begins there", mlflow.get_tracking_uri(), run)

    def reopen(self, run: str) -> None:
        """Open the run again: transformers has ended it, and MLflow would begin another one."""
        import mlflow

        if mlflow.active_run() is None:
            mlflow.start_run(run_id=run)

    def end(self, run: str, error: BaseException | None) -> None:
        """End it, and say so if that was early."""
        import mlflow

        if self.current() == run:
            mlflow.end_run()
        if error is not None:
            status = "KILLED" if isinstance(error, InterruptedRunError) else "FAILED"
            mlflow.MlflowClient().set_terminated(run, status)

    def add_report(self, folder: Path, step: int) -> None:
        """Add the files to the run's artifacts."""
        import mlflow

        mlflow.log_artifacts(str(folder), f"{folder.parent.name}/{folder.name}")


class Trackio(Tracker):
    """A run is known by its name."""

    def current(self) -> str | None:
        """Return the name."""
        return self.args.run_name

    def begin(self, state: Any) -> None:
        """Give the run a name, by which it can be resumed."""
        if self.args.run_name is None:
            self.args.run_name = f"{Path(self.args.output_dir).name}-{uuid.uuid4().hex[:8]}"
        super().begin(state)

    def resume(self, run: str) -> None:
        """Give the run its name again: transformers resumes by name."""
        self.args.run_name = self.args.run_name or run

    def add_report(self, folder: Path, step: int) -> None:
        """Add an artifact of the run."""
        import trackio

        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"thoughts-{self.args.run_name}")
        trackio.log_artifact(folder, name=name, type="thoughts", aliases=[folder.name])


TRACKERS: dict[type, type[Tracker]] = {
    TensorBoardCallback: TensorBoard,
    WandbCallback: Wandb,
    MLflowCallback: MLflow,
    TrackioCallback: Trackio,
}
"""transformers' callback -> what goes beyond it"""
PACKAGES = ("tensorboard", "wandb", "mlflow", "trackio")
"""values of report_to, each the package's name"""


def check_installed(report_to: list[str]) -> None:
    """Raise SettingsError if the package of a tracker is missing."""
    for name in report_to:
        if name in PACKAGES and find_spec(name) is None:
            raise SettingsError(
                f"report_to is {name}, which is not installed: pip install {name}, or 'quietstar[trackers]' for all"
            )


class TrackRun(TrainerCallback):
    """Opens the trackers' runs again when a training run is resumed, and hands them its reports of thoughts.

    It comes before the trackers' own callbacks. Only the first process reports.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.runs: dict[str, str] = {}
        """tracker -> what it knows the run by, at the end of training"""

    def trackers(self) -> dict[str, Tracker]:
        """Return name -> tracker of those that the run reports to; none on other processes than the first."""
        callbacks = self.trainer.callback_handler.callbacks if self.trainer.is_world_process_zero() else []
        return {
            of.__name__: of(callback, self.trainer)
            for callback in callbacks
            for kind, of in TRACKERS.items()
            if isinstance(callback, kind)
        }

    def current(self) -> dict[str, str]:
        """Return tracker -> what it knows the present run by."""
        return {name: run for name, tracker in self.trackers().items() if (run := tracker.current())}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin or resume. What is resumed with other settings (allow_changes) is another run."""
        self.runs, kept = {}, {}
        if self.trainer.resumed is not None and not args.allow_changes:
            kept = checkpoints.read_marker(self.trainer.resumed).get("trackers", {})
        for name, tracker in self.trackers().items():
            try:
                if name in kept:
                    tracker.resume(kept[name])
                else:
                    tracker.begin(state)
            except Exception as error:  # Each has its own errors: no login, no server, a folder that is not writable.
                raise SettingsError(f"report_to has {name.lower()}, which cannot begin: {first_line(error)}") from error

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the runs, which the trackers' callbacks end."""
        self.runs = self.current()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let figures after the end of training go where the others went."""
        for name, tracker in self.trackers().items():
            if name in self.runs:
                tracker.reopen(self.runs[name])

    def add_report(self, folder: Path, step: int) -> None:
        """Hand a report of thoughts, the files of a folder, to the trackers."""
        for name, tracker in self.trackers().items():
            try:
                tracker.add_report(folder, step)
            except Exception as error:  # Each has its own errors, and the run is worth more than a report.
                logger.warning("the report of step %d cannot be added to %s: %s", step, name, first_line(error))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the trackers' runs that begin within; those that were open before are the user's."""
        before, error = self.current(), None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.runs |= self.current()
            for name, run in self.runs.items():
                if before.get(name) != run:
                    self.trackers()[name].end(run, error)
