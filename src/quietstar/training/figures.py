"""The figures of training: what the steps since the last line add up to, and the whole run."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quietstar.runs.processes import Processes
from quietstar.training.parts import Part
from quietstar.training.tally import Tally


class TrainingFigures(Part):
    """Adds up the steps since the last line of figures, and the losses and the time of the whole run.

    Losses are means over good steps and all processes: a skipped step adds nothing.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.tally = Tally()
        self.loss = torch.zeros((), device=processes.device)
        self.n_steps, self.seconds = 0, 0.0
        self.total_loss, self.total_steps = 0.0, 0
        self.seconds_before = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """Start the clock of a run."""
        self._began = time.perf_counter()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time within as time of training: evaluations and checkpoints do not count in tokens a second."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def add_step(self, losses: Sequence[Tensor]) -> None:
        """Add a good step: the losses [] of its batches."""
        for loss in losses:
            self.loss = self.loss + loss
        self.n_steps += 1

    def complete(self, line: dict[str, float], base_loss_weight: float, n_bad: int) -> None:
        """Complete a line: mean loss of the good steps since the last one, the method's figures, tokens a second.

        Args:
            line: has a loss, which is removed if every step was bad.
            base_loss_weight: share of base_nll in nll.
            n_bad: bad steps of the run so far.
        """
        if self.tally:
            line |= self.tally.figures(base_loss_weight, self.processes.gather)
            line["tokens_per_second"] = self.tally.n_tokens * self.processes.n / self.seconds
            self.tally, self.seconds = Tally(), 0.0
        n_steps, loss = self.n_steps, self._close_line()
        _set_mean(line, "loss", loss, n_steps)
        line["bad_steps"] = n_bad

    def _close_line(self) -> float:
        """Return the loss summed over the steps since the last line, and move it to the run's."""
        loss = float(self.processes.gather(self.loss).mean())
        self.total_loss, self.total_steps = self.total_loss + loss, self.total_steps + self.n_steps
        self.loss, self.n_steps = torch.zeros_like(self.loss), 0
        return loss

    def summarize(self, figures: dict[str, float], step: int, rows_per_step: int) -> None:
        """Complete the last line of a run: its mean loss, and its time, which includes that before it was resumed.

        Args:
            figures: train_loss, train_runtime in seconds, and rates.
            step: the last one.
            rows_per_step: over all processes.
        """
        self._close_line()
        _set_mean(figures, "train_loss", self.total_loss, self.total_steps)
        if self.seconds_before:
            figures["train_runtime"] += self.seconds_before
            steps_per_second = step / figures["train_runtime"]
            figures["train_steps_per_second"] = round(steps_per_second, 3)
            figures["train_samples_per_second"] = round(steps_per_second * rows_per_step, 3)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last line, and the loss and the time of the run."""
        return {
            "sums": {name: value.cpu() for name, value in self.tally.sums.items()},
            "loss": self.loss.cpu(),
            "n_steps": self.n_steps,
            "seconds": self.seconds,
            "total_loss": self.total_loss,
            "total_steps": self.total_steps,
            "run_seconds": self.seconds_before + (time.perf_counter() - self._began if self._began else 0.0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        device = self.processes.device
        self.tally.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.loss = state["loss"].to(device)
        self.n_steps, self.seconds = state["n_steps"], state["seconds"]
        self.total_loss, self.total_steps = state["total_loss"], state["total_steps"]
        self.seconds_before, self._began = state["run_seconds"], time.perf_counter()

    def snapshot(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return dict(self.tally.sums)

    def rollback(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a `snapshot`."""
        self.tally.sums = dict(snapshot)


def _set_mean(figures: dict[str, float], name: str, total: float, n: int) -> None:
    """Set a mean over n steps; remove it if there was none."""
    if n:
        figures[name] = total / n
    else:
        del figures[name]
