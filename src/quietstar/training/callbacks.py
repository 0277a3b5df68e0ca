"""What a run shows while it goes on: a line of figures, and a sample of thoughts at every evaluation."""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback

from quietstar.model import QuietStarForCausalLM
from quietstar.training.health import HealthChecks
from quietstar.training.reports import first_of

logger = logging.getLogger(__name__)

SHOWN = (
    "loss",
    "nll",
    "base_nll",
    "talk_nll_0",
    "nll_before",
    "drift",
    "gain",
    "thought_gain",
    "reward_mean",
    "mixing_weight",
    "distinct_thoughts",
    "thought_entropy",
    "policy_share",
    "tokens_per_second",
)
"""figures of a line on the screen; trackers and log_history get all of them"""


TASK_FIGURES = ("_answer_probability", "_exact_match")
"""ends of the names of tasks' figures, shown too"""


class ProgressLines(ProgressCallback):
    """The progress bar, with its time left, and above it the figures that matter, a line each time."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line above the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        tasks = (name.removeprefix(prefix) for name in logs if name.endswith(TASK_FIGURES))
        figures = [f"{name} {logs[prefix + name]:.4g}" for name in (*SHOWN, *tasks) if prefix + name in logs]
        if figures:
            what = "held out" if prefix else "training"
            self.training_bar.write(f"step {state.global_step:>5}  {what}  {'  '.join(figures)}")
        if "eval_nll_before" in logs:
            now = logs["eval_nll_before"] - logs["eval_gain"]
            self.training_bar.set_postfix_str(f"held-out nll {now:.4g}, {logs['eval_nll_before']:.4g} before training")


class WatchHealth(TrainerCallback):
    """Warns once of each fault that a run's figures show; `stop_when_unhealthy` ends the run there.

    Args:
        checks: what looks at the figures.
    """

    def __init__(self, checks: HealthChecks) -> None:
        self.checks = checks

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at a line of figures."""
        told = self.checks.look(state.global_step, logs or {}, args.get_warmup_steps(state.max_steps))
        if not told:
            return
        if args.stop_when_unhealthy:
            told.append(f"step {state.global_step} of {state.max_steps}: the run ends here (stop_when_unhealthy)")
            control.should_training_stop = control.should_save = True
        if state.is_world_process_zero:
            for words in told:
                logger.warning(words)


class KeepLog(TrainerCallback):
    """Adds each line of figures to log.jsonl as it comes; a run that is resumed begins with those of its checkpoint.

    Where a line cannot be written, the run goes on: checkpoints have all lines, and its end writes the file anew.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the file."""
        self._write("w", state, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add a line."""
        self._write("a", state, state.log_history[-1:])

    def _write(self, mode: str, state: Any, lines: list[dict[str, float]]) -> None:
        if state.is_world_process_zero:
            with contextlib.suppress(OSError), self.file.open(mode, encoding="utf-8") as file:
                file.writelines(f"{json.dumps(line)}\n" for line in lines)


class FollowEpoch(TrainerCallback):
    """Tells the training texts which epoch it is, also when a run goes on in the middle of one.

    Args:
        dataset: has set_epoch, or is left alone.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take other windows in each epoch."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch + 1e-6))


class ShowThoughts(TrainerCallback):
    """Prints a sample of thoughts on held-out text at every evaluation.

    Args:
        dataset: held-out text; thoughts are taken from its first row.
        collator: makes a batch of it.
        n_shown: thoughts to print.
    """

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
        was_training = model.training
        model.eval()
        try:
            table = thought_table(model, tokenizer, batch["input_ids"][:1].to(model.device), self.n_shown)
        finally:
            model.train(was_training)
        if state.is_world_process_zero:  # where weights are sharded, all processes must take part
            Console(stderr=True).print(table)


def thought_table(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, n_shown: int
) -> Table:
    """A table of thoughts at positions spread evenly over a row [1, S]: context, thought, weight, what follows."""
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
            repr(tokenizer.decode(output.thoughts[0, 0, i]))[1:-1],
            repr(tokenizer.decode(input_ids[0, i + 1 : i + 4]))[1:-1],
            f"{output.mixing_weight[0, 0, i, 0]:.2f}",
            f"{output.reward[0, 0, i]:+.2f}",
        )
    return table
