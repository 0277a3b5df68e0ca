"""Callbacks of a run: its events for the trainer's parts, lines of figures, thoughts and reports at evaluations."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy, has_length

from quietstar.base.loading import evaluating
from quietstar.errors import SettingsError
from quietstar.model import QuietStarForCausalLM
from quietstar.output import tokens_of
from quietstar.reporting.durations import in_words
from quietstar.reporting.tables import json_lines
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.health import HealthChecks
from quietstar.training.reports import WriteReports, first_of
from quietstar.training.trackers import TrackRun

logger = logging.getLogger(__name__)

SHOWN = """
loss nll base_nll talk_nll_0 nll_before drift gain thought_gain reward_mean mixing_weight distinct_thoughts
thought_entropy policy_share tokens_per_second
"""
"""figures of a line on the screen; trackers and log_history get all of them"""

TASK_FIGURES = ("_answer_probability", "_exact_match")
"""ends of the names of tasks' figures, shown too"""


def add_callbacks(trainer: Any) -> TrackRun:
    """Give a QuietStarTrainer its callbacks, in the order in which they are called, and return that of its trackers."""
    tracked = TrackRun(trainer)
    trainer.callback_handler.callbacks.insert(0, tracked)
    args, tokenizer, held_out = trainer.args, trainer.processing_class, trainer.eval_dataset
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(ProgressLines() if sys.stderr.isatty() else FigureLines())
    trainer.add_callback(RunEvents(trainer))
    if args.health_checks:
        trainer.add_callback(WatchHealth(trainer.parts.health))
    if args.thoughts_shown and held_out is not None and tokenizer is not None:
        trainer.add_callback(ShowThoughts(held_out, trainer.data_collator, args.thoughts_shown))
    if args.eval_report_rows and tokenizer is not None:
        trainer.add_callback(WriteReports(held_out, args.eval_report_rows, tokenizer, tracked.add_report))
    return tracked


def settle_evaluation(
    args: QuietStarTrainingArguments, tokenizer: PreTrainedTokenizerBase | None, eval_dataset: Any
) -> None:
    """Switch evaluations off if no text is held out, and warn of rows that they leave out.

    Raises:
        SettingsError: every evaluation is to give something that needs held-out text or a tokenizer.
    """
    for name in ("eval_tasks", "eval_report_rows"):
        if getattr(args, name) and eval_dataset is None:
            raise SettingsError(f"{name} was given for every evaluation, and no text is held out; give an eval_size")
        if getattr(args, name) and tokenizer is None:
            raise SettingsError(f"{name} was given, which needs a tokenizer; give processing_class")
    if eval_dataset is None:
        args.eval_strategy, args.eval_on_start = type(args.eval_strategy)("no"), False
    batch = args.eval_batch_size * args.world_size
    for rows in eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,):
        if args.dataloader_drop_last and args.process_index == 0 and has_length(rows) and len(rows) % batch:
            logger.warning(
                "dataloader_drop_last leaves %d of %d held-out rows out of every evaluation, as a batch has %d%s; "
                "lower --per_device_eval_batch_size, or leave that option out",
                len(rows) % batch,
                len(rows),
                batch,
                "" if len(rows) > batch else ", so there are no held-out figures",
            )


class RunEvents(TrainerCallback):
    """Tells a QuietStarTrainer, its parts and its training texts where the run is."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin or resume a run."""
        self.trainer.begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take other windows in each epoch, also if the run is resumed within one."""
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch + 1e-6))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep a bad step from the optimizer, on every process; too many in a row end the run.

        Without gradients, optimizer.step() changes no weight and none of its own state, not even by weight decay. The
        step still counts, and the learning rate moves on; the figures are as they were before it.
        """
        parts = self.trainer.parts
        why = parts.guard.why_bad(is_scaled=getattr(self.trainer.accelerator, "scaler", None) is not None)
        if why is None:
            parts.figures.add_step(parts.guard.losses)
        else:
            parts.schedule.stopped_by = parts.guard.too_many(why)
            self.trainer.discard_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the reference follow the weights, which a bad step has left as they were."""
        if not self.trainer.parts.guard.bad_steps.in_a_row:
            self.trainer.parts.reference.update(self.trainer.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what is due after a step."""
        is_bad, ends_epoch = self._how_it_ended(state)
        self.trainer.parts.schedule.end_step(
            control,
            state.global_step,
            is_bad=is_bad,
            ends_epoch=ends_epoch,
            saves=args.save_strategy != SaveStrategy.NO,
            resumable=not args.save_only_model,
        )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what is due after an epoch."""
        is_bad, is_complete = self._how_it_ended(state)
        self.trainer.parts.schedule.end_epoch(control, is_bad=is_bad, is_complete=is_complete)

    def _how_it_ended(self, state: Any) -> tuple[bool, bool]:
        """Return whether the last step was bad, and whether it completed an epoch."""
        return self.trainer.parts.guard.bad_steps.in_a_row > 0, float(state.epoch or 0).is_integer()


def line_of(logs: Mapping[str, Any], step: int) -> str:
    """Return the most important figures on a line; nothing if there are none of them."""
    prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
    tasks = (name.removeprefix(prefix) for name in logs if name.endswith(TASK_FIGURES))
    figures = [f"{name} {logs[prefix + name]:.4g}" for name in (*SHOWN.split(), *tasks) if prefix + name in logs]
    return "  ".join([f"step {step:>5}", "held out" if prefix else "training", *figures]) if figures else ""


class FigureLines(TrainerCallback):
    """Lines of figures alone, where there is no terminal to draw a progress bar on, such as in a log file.

    After the first step, one says how long the others will take.
    """

    def __init__(self) -> None:
        self.began: float | None = None
        self.is_first = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when the first step begins."""
        self.began, self.is_first = time.monotonic() if self.is_first else None, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how long it took."""
        left = state.max_steps - state.global_step
        if self.began is not None and state.is_world_process_zero and left:
            seconds = time.monotonic() - self.began
            rest = in_words(left * seconds)
            logger.info("step %d took %s; %d more take about %s", state.global_step, in_words(seconds), left, rest)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a line."""
        if state.is_world_process_zero and (line := line_of(logs or {}, state.global_step)):
            print(line, flush=True)


class ProgressLines(ProgressCallback):
    """The progress bar with the time left, and above it lines of figures."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line above the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if line := line_of(logs, state.global_step):
            self.training_bar.write(line)
        if "eval_nll_before" in logs:
            now = logs["eval_nll_before"] - logs["eval_gain"]
            self.training_bar.set_postfix_str(f"held-out nll {now:.4g}, {logs['eval_nll_before']:.4g} before training")


@contextlib.contextmanager
def lines_of_their_own(trainer: Trainer) -> Iterator[None]:
    """Within the block, log above progress bars; after it, an error's message comes below them."""
    with logging_redirect_tqdm():
        try:
            yield
        finally:
            for callback in trainer.callback_handler.callbacks:
                for bar in (getattr(callback, name, None) for name in ("prediction_bar", "training_bar")):
                    if bar is not None:
                        bar.close()


class WatchHealth(TrainerCallback):
    """Warns once of each problem that a run's figures show; with `stop_when_unhealthy` the run ends there."""

    def __init__(self, checks: HealthChecks) -> None:
        self.checks = checks

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Check a line of figures."""
        warnings = self.checks.look(state.global_step, logs or {}, args.get_warmup_steps(state.max_steps))
        if not warnings:
            return
        if args.stop_when_unhealthy:
            warnings.append(f"step {state.global_step} of {state.max_steps}: the run ends here (stop_when_unhealthy)")
            control.should_training_stop = control.should_save = True
        if state.is_world_process_zero:
            for warning in warnings:
                logger.warning(warning)


class KeepLog(TrainerCallback):
    """Appends each line of figures to log.jsonl; a run that is resumed begins with the lines of its checkpoint.

    If a line cannot be written, the run continues: checkpoints have all lines, and its end writes the file again.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the file."""
        self._write("w", state, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append a line."""
        self._write("a", state, state.log_history[-1:])

    def _write(self, mode: str, state: Any, history: list[dict[str, float]]) -> None:
        if state.is_world_process_zero:
            with contextlib.suppress(OSError), self.file.open(mode, encoding="utf-8") as file:
                file.write(json_lines(history))


class ShowThoughts(TrainerCallback):
    """Prints a few thoughts on the first row of held-out text at every evaluation."""

    def __init__(self, dataset: Any, collator: Any, n_shown: int) -> None:
        self.dataset, self.collator, self.n_shown = dataset, collator, n_shown

    @torch.no_grad()
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Think at a few positions spread over the first row."""
        model, tokenizer = kwargs.get("model"), kwargs.get("processing_class")
        if not isinstance(model, QuietStarForCausalLM) or tokenizer is None:
            return
        batch = self.collator([next(iter(first_of(self.dataset)))])
        if len(batch["input_ids"][0]) < 2 or model.config.n_thought_tokens == 0:
            return
        with evaluating(model):
            table = thought_table(model, tokenizer, batch["input_ids"][:1].to(model.device), self.n_shown)
        if state.is_world_process_zero:  # If weights are sharded, all processes must take part.
            Console(stderr=True).print(table)


def thought_table(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, n_shown: int
) -> Table:
    """Return a table of thoughts at positions spread evenly over a row [1, S]: context, thought, weight, reward."""
    S = input_ids.shape[1]
    n_shown = min(n_shown, S - 1)
    positions = (2 * torch.arange(n_shown) + 1) * (S - 1) // (2 * n_shown)
    think_at = torch.zeros_like(input_ids)
    think_at[:, positions] = 1
    output = model(input_ids, labels=input_ids, think_at=think_at, n_ahead_talk=1, loss_only=True)

    table = Table(title="thoughts on held-out text", title_justify="left", title_style="bold")
    table.add_column("after", justify="right")
    table.add_column("thought")
    table.add_column("then")
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    for i in positions.tolist():
        context = tokenizer.decode(input_ids[0, max(0, i - 7) : i + 1])
        table.add_row(
            repr(context)[1:-1],
            repr(tokenizer.decode(tokens_of(output.thoughts[:, 0, i])[0]))[1:-1],
            repr(tokenizer.decode(input_ids[0, i + 1 : i + 4]))[1:-1],
            f"{output.mixing_weight[0, 0, i, 0]:.2f}",
            f"{output.reward[0, 0, i]:+.2f}",
        )
    return table
