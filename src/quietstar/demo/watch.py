"""A callback for the demo's trainings: a progress bar, and a diary of figures."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback

Line = dict[str, Any]
Measure = Callable[[], Line]


def progress_bar(console: Console) -> Progress:
    """Return a progress display with a bar per training and the latest figure beside it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figure]}"),
        console=console,
    )


class Watch(TrainerCallback):
    """Advances a progress bar, keeps every line that a trainer logs, and measures every few steps.

    Args:
        stage: name of the training in the diary.
        diary: list to which a line is appended for each step.
        progress: shows the bar.
        description: label of the bar.
        n_steps: length of the bar.
        measure: returns further figures; called before the first step and every `every` steps.
        every: steps between measurements.
        shown: name and format of the figure to show beside the bar.
    """

    def __init__(
        self,
        stage: str,
        diary: list[Line],
        progress: Progress,
        description: str,
        n_steps: int,
        *,
        measure: Measure | None = None,
        every: int = 1,
        shown: tuple[str, str] = ("loss", "loss {:.3f}"),
    ) -> None:
        self.stage, self.diary, self.progress = stage, diary, progress
        self.measure, self.every, self.shown = measure, every, shown
        self.task = progress.add_task(description, total=n_steps, figure="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first step."""
        if self.measure is not None:
            self._write({"step": 0} | self.measure())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar, and measure if it is time to."""
        self.progress.update(self.task, completed=state.global_step)
        if self.measure is not None and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self._write({"step": state.global_step} | self.measure())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the figures of a step, but not the summary at the end of training."""
        if logs and "loss" in logs:
            self._write({"step": state.global_step} | logs)

    def _write(self, figures: Line) -> None:
        name, text = self.shown
        if name in figures:
            self.progress.update(self.task, figure=text.format(figures[name]))
        if self.diary and (self.diary[-1]["stage"], self.diary[-1]["step"]) == (self.stage, figures["step"]):
            self.diary[-1].update(figures)
        else:
            self.diary.append({"stage": self.stage} | figures)
