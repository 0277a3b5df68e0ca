"""A trainer whose runs go on from their checkpoints bit by bit, and end with one when a signal says so."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy

from quietstar.base.untrusted import is_number, is_whole
from quietstar.errors import (
    CheckpointError,
    InterruptedRunError,
    OutOfMemoryError,
    QuietStarError,
    SettingsError,
    reason,
)
from quietstar.training import checkpoints
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.windows import TextWindows
from quietstar.training.guarded import is_out_of_memory
from quietstar.training.same_run import refuse_changes, what_matters
from quietstar.training.saving import SavingTrainer
from quietstar.training.signals import StopSignals


class DurableTrainer(SavingTrainer):
    """transformers' Trainer, with checkpoints and steps as this package promises them (docs/reliability.md).

    Attributes:
        settings: name -> value of settings of the run that the arguments do not have, such as its texts; a run that is
            resumed must have the same.
        signals: where a signal is noted that is to end the run; None where nobody listens.
    """

    args: QuietStarTrainingArguments
    control: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings: dict[str, Any] = {}
        self.signals: StopSignals | None = None
        self._resumed: Path | None = None
        self._owes_evaluation = self._owes_checkpoint = False
        self._begun_at, self._seconds_before = 0.0, 0.0
        self._logged_at, self._bad_at_log = 0, 0
        self._epoch_ended = False
        self.add_callback(_Steps(self))

    # ------------------------------------------------------------------ a run

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer.

        Raises:
            CheckpointError: there is no checkpoint to resume from, or it is not whole; one could not be written.
            SettingsError: the checkpoint is of a run with other settings.
            BadStepsError: too many bad steps in a row; no checkpoint was written since the last good step.
            InterruptedRunError: a signal was received; a checkpoint was written.
        """
        checkpoint = None
        if resume_from_checkpoint:
            named = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
            checkpoint = checkpoints.to_resume(Path(str(self.args.output_dir)), named)
            self.refuse_changes(checkpoint)
            check_state(checkpoint)
        self._resumed, self.stopped_by = checkpoint, None
        self._owes_evaluation = self._owes_checkpoint = False
        self.forget_run()
        evaluates_first, self.args.eval_on_start = self.args.eval_on_start, self.args.eval_on_start and not checkpoint
        try:
            result = super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                "out of memory outside the passes over a batch, in the optimizer: add --lora or --optim adafactor"
            ) from error
        finally:
            self.args.eval_on_start = evaluates_first
        if self.stopped_by is not None:
            raise self.stopped_by
        return result._replace(training_loss=result.metrics.get("train_loss", math.nan))

    def refuse_changes(self, checkpoint: Path) -> None:
        """Refuse to resume from a checkpoint what would not be the same run.

        Raises:
            SettingsError: it is of a run with other settings, and that is not allowed; or later ones lie beside it.
            CheckpointError: it has no optimizer, or is of shards and the model is not, or the other way round.
        """
        marker = checkpoints.read_marker(checkpoint)
        if not self.args.allow_changes:
            refuse_changes(marker.get("settings", {}), self._what_matters(), str(checkpoint))
        if marker.get("resumable") is False:
            raise CheckpointError(
                f"{checkpoint} has no optimizer (save_only_model); train from it as --model, in another output_dir"
            )
        if marker.get("sharded") != self._how_sharded:
            raise CheckpointError(
                f"{checkpoint} was written under {marker.get('sharded') or 'no sharding'}, and this run is under "
                f"{self._how_sharded or 'no sharding'}; launch it as it was, or make a model of it by quietstar convert"
            )
        run = Path(str(self.args.output_dir))
        later = [
            path.name
            for path in checkpoints.whole_checkpoints(run)
            if checkpoints.step_of(path) > checkpoints.step_of(checkpoint)
        ]
        if checkpoint.resolve().parent == run.resolve() and later:
            raise SettingsError(
                f"{checkpoint.name} was named to go on from, and {', '.join(later)} lie beside it, which the run would "
                "overwrite; move them away, or give another output_dir"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with going_on_from(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Leave out what is tied: it is stored once, under its other name."""
        named = dict(self.model.named_parameters())
        tied = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - named.keys()
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with going_on_from(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with going_on_from(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with going_on_from(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        with going_on_from(self.state.best_model_checkpoint):
            super()._load_best_model()

    @property
    def _how_sharded(self) -> str | None:
        return "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else None

    def _what_matters(self) -> dict[str, Any]:
        texts = self.train_dataset
        return what_matters(
            self.args,
            self.accelerator.unwrap_model(self.model).config,
            self.settings | (texts.contents if isinstance(texts, (TextWindows, StreamedTextWindows)) else {}),
            workers_matter=not isinstance(texts, TextWindows),
        )

    def begin(self) -> None:
        """Go on where the checkpoint was, before the first step; called once a run."""
        self._begun_at, self._seconds_before = time.perf_counter(), 0.0
        self._logged_at, self._bad_at_log = self.state.global_step, 0
        if self.args.process_index > 0:  # what it draws is its own; data are drawn by seeds that all share
            torch.manual_seed(hash((self.args.seed, self.args.process_index)) % 2**63)
        if self._resumed is None:
            return
        run = Path(str(self.args.output_dir))
        self._name_the_best(run)  # which may have been moved
        if self.args.should_save and checkpoints.latest(run) == self._resumed:
            # what was to be deleted when the run was stopped
            checkpoints.keep_latest(run, self.args.save_total_limit, also=self.state.best_model_checkpoint)
        self.state.compute_steps(self.args, self.state.max_steps)  # how often it saves and shows may have changed
        settings = checkpoints.read_marker(self._resumed).get("settings", {})
        file = self._resumed / _progress_name(self.args.process_index)
        if settings.get("world_size") != self.args.world_size or not file.is_file():
            return
        with going_on_from(self._resumed):
            progress = torch.load(file, weights_only=True)
            self._tr_loss += progress["tr_loss"].to(self._tr_loss.device)
            self._globalstep_last_logged = self._logged_at = progress["logged_at"]
            self._bad_at_log = progress["bad_at_log"]
            self._total_loss_scalar, self._initial_global_step = progress["total_loss"], 0
            self._seconds_before = progress["seconds"]
            self.bad_steps.restore(progress["bad_steps"])
            self.rows_at_once = progress["rows_at_once"]
            self.restore_progress(progress["more"])
            self._epoch_ended = progress["epoch_ended"]
            owes_evaluation, grad_norm = progress["owes_evaluation"], progress["grad_norm"]
        if owes_evaluation:
            self._make_up_for_evaluation()
        if float(self.state.epoch or 0).is_integer() and not self._epoch_ended:
            self._make_up_for_the_end_of_an_epoch(grad_norm)

    def _make_up_for_evaluation(self) -> None:
        """The evaluation that was due when a signal was received, of the checkpoint that was written then."""
        metrics = self._evaluate(None, None)
        if self._determine_best_metric(metrics, None):
            self._name_the_best(Path(str(self.args.output_dir)))

    def _make_up_for_the_end_of_an_epoch(self, grad_norm: float | None) -> None:
        """What is due at its end, after a checkpoint that its last step has written."""
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        epoch = int(self.state.epoch or 0) - 1
        self._maybe_log_save_evaluate(self._tr_loss, grad_norm, self.model_wrapped, None, epoch, None, time.time())

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # transformers would take one more step
            self.control.should_training_stop = True
        if self.control.should_training_stop:
            return
        self._epoch_ended = False
        super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers' Trainer.

        Raises:
            OutOfMemoryError: it does not fit into memory.
        """
        try:
            return super().evaluate(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory in an evaluation after step {self.state.global_step}, with "
                f"{self.args.per_device_eval_batch_size} rows at once: lower --per_device_eval_batch_size"
            ) from error

    def progress(self) -> dict[str, Any]:
        """What a subclass must know to go on: tensors, numbers, texts, in lists and dictionaries."""
        return {}

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on from a `progress`."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Leave bad steps out of mean losses, and count them; count the time before a run was resumed, too."""
        if "loss" in logs:
            n, n_bad = self.state.global_step - self._logged_at, self.bad_steps.count - self._bad_at_log
            _of_good_steps(logs, "loss", n, n_bad)
            logs["bad_steps"] = self.bad_steps.count
            self._logged_at, self._bad_at_log = self.state.global_step, self.bad_steps.count
        if "train_loss" in logs:
            # older versions of transformers divide by all steps, also of a run that was resumed
            n = self.state.global_step - getattr(self, "_initial_global_step", 0)
            _of_good_steps(logs, "train_loss", n, self.bad_steps.count)
        if "train_runtime" in logs:
            now, whole = logs["train_runtime"], logs["train_runtime"] + self._seconds_before
            logs["train_runtime"] = whole
            for name in ("train_samples_per_second", "train_steps_per_second"):
                if name in logs and whole:
                    logs[name] = round(logs[name] * now / whole, 3)
        super().log(logs, start_time)

    def end_step(self, control: Any) -> None:
        """End the run where a signal was received on any process, with a checkpoint, or bad steps are too many.

        A checkpoint that is due at a bad step waits for a good one: what gives bad steps may be the weights, and the
        checkpoint before would give way to them.
        """
        due = control.should_save or self._owes_checkpoint
        control.should_save = due and not self.bad_steps.in_a_row
        self._owes_checkpoint = due and not control.should_save
        received = self.signals.received if self.signals is not None else None
        saves = self.args.save_strategy != SaveStrategy.NO
        if self.any_of_all(received is not None):
            folder = checkpoints.name_of(self.state.global_step)
            left = f"{folder} is whole: go on with --resume" if saves else "save_strategy is no, and nothing was saved"
            self.stopped_by = InterruptedRunError(
                f"stopped by {received or 'a signal on another process'} after step {self.state.global_step}; {left}"
            )
            self._owes_evaluation, control.should_evaluate = control.should_evaluate, False
            control.should_save = saves
        if self.stopped_by is not None:
            control.should_training_stop = True

    def end_epoch(self, control: Any) -> None:
        """Neither evaluate nor save once more after a run that was ended; do not save at a bad step."""
        self._epoch_ended = True
        if self.stopped_by is not None:
            control.should_evaluate = control.should_save = control.should_log = False
        if control.should_save and self.bad_steps.in_a_row:
            control.should_save, self._owes_checkpoint = False, True

    def about_checkpoint(self) -> dict[str, Any]:
        """Which step it is of, how it is sharded, and the settings of the run."""
        return {
            "step": self.state.global_step,
            "sharded": self._how_sharded,
            "resumable": not self.args.save_only_model,
            "settings": self._what_matters(),
        }

    def save_progress(self, written: Path) -> None:
        """Write what this process must know to go on."""
        progress = {
            "tr_loss": self._tr_loss.cpu(),
            "logged_at": self._globalstep_last_logged,
            "bad_at_log": self._bad_at_log,
            "total_loss": self._total_loss_scalar,
            "seconds": self._seconds_before + time.perf_counter() - self._begun_at,
            "bad_steps": self.bad_steps.state(),
            "rows_at_once": self.rows_at_once,
            "owes_evaluation": self._owes_evaluation,
            "epoch_ended": self._epoch_ended,
            "grad_norm": self._grad_norm,
            "more": self.progress(),
        }
        written.mkdir(parents=True, exist_ok=True)
        torch.save(progress, written / _progress_name(self.args.process_index))


@contextlib.contextmanager
def going_on_from(checkpoint: str | Path | None) -> Iterator[None]:
    """Say in one line of CheckpointError why a checkpoint cannot be read, whatever the libraries below raise."""
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{checkpoint} cannot be gone on from ({reason(error)}): a file in it is damaged, or of another model; "
            "move it away, and --resume goes on from the one before"
        ) from error


def check_state(checkpoint: Path) -> None:
    """Raise CheckpointError where the state of the trainer in a checkpoint is none, or that of another step."""
    with going_on_from(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        step = checkpoints.read_marker(checkpoint).get("step")
        if not is_whole(state.global_step) or state.global_step != step:
            raise ValueError(f"trainer_state.json is of step {state.global_step!r}, and complete.json of {step!r}")
        if not (is_number(state.epoch) and isinstance(state.log_history, list)):
            raise TypeError("trainer_state.json has no epoch, or no lines of figures")
        if not isinstance(state.stateful_callbacks, dict):
            raise TypeError("trainer_state.json has no states of callbacks")


def _of_good_steps(logs: dict[str, float], name: str, n: int, n_bad: int) -> None:
    """Make a mean over n steps, to which the bad ones have added nothing, that of the others; without any it goes."""
    if n > n_bad:
        logs[name] *= n / (n - n_bad)
    else:
        del logs[name]


def _progress_name(rank: int) -> str:
    return f"progress-{rank}.pt"


@dataclasses.dataclass
class _Steps(TrainerCallback):
    """Tells a trainer where its run is."""

    trainer: DurableTrainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.judge_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_step(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_epoch(control)
