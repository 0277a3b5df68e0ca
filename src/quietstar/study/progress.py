"""How far a study is: a bar over all of its runs, weighted by their operations; what each run prints goes to a file."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

OUTPUT = "output.txt"
"""file of what the runs print"""


class StudyProgress(TrainerCallback):
    """Shows a bar on a terminal, and a line for each run elsewhere; as a callback of a run, it advances with its steps.

    Args:
        total: operations of all runs that are left.
        n_runs: of the study.
        n_done: runs that were done before.
    """

    def __init__(self, total: float, n_runs: int, n_done: int) -> None:
        self.console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160)
        self.n_runs, self.n_done, self.step_flops, self.step = n_runs, n_done, 0.0, 0
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=total)

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show the bar within the block."""
        with self.bar:
            yield

    def begin(self, name: str, n_steps: int, step_flops: float) -> None:
        """Begin a run."""
        self.n_done, self.step_flops, self.step = self.n_done + 1, step_flops, 0
        line = f"run {self.n_done} of {self.n_runs}: {name}"
        self.bar.update(self.task, description=line)
        if not self.console.is_terminal:
            steps = f", {n_steps:,} steps of {step_flops / 1e12:.3g} TFLOP" if n_steps else ""
            self.console.print(f"{line}{steps}", highlight=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin at the step from which a run is resumed."""
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance by the steps that were taken."""
        self.bar.advance(self.task, (state.global_step - self.step) * self.step_flops)
        self.step = state.global_step


@contextlib.contextmanager
def output_to(folder: Path) -> Iterator[None]:
    """Append what a run prints to a file of the study's folder; warnings are shown, too."""
    package = logging.getLogger("quietstar")
    level = package.level
    with (folder / OUTPUT).open("a", encoding="utf-8") as file:
        package.setLevel(logging.WARNING)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            package.setLevel(level)
