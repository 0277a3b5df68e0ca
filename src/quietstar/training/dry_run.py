"""A few steps of a training run, to measure the memory and the time of one, and with it the time of the whole run."""

import resource
import sys
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from quietstar.reporting.durations import in_words
from quietstar.training.trainer import QuietStarTrainer

STEPS = 3
"""The first one creates the optimizer's states and is slower; the others are measured."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """The time and memory of a step, on the process that took most."""

    n_rows: int
    """rows of a step, over all processes"""
    n_tokens: int
    """tokens of each, as many as a row can have"""
    seconds: float
    """of a step, the mean over those that were measured"""
    n_steps: int
    """of the whole run"""
    peak: int
    """bytes: of GPU memory allocated, or the resident set without a GPU"""
    on_gpu: bool

    def words(self) -> str:
        """Return a sentence for the terminal."""
        return (
            f"one step of {self.n_rows} rows of {self.n_tokens} tokens took {self.seconds:.3g} s and at most "
            f"{self.peak / 2**30:.3g} GiB of {'GPU memory' if self.on_gpu else 'memory (resident set)'} on a process; "
            f"{self.n_steps:,} steps would take about {in_words(self.seconds * self.n_steps)}, without evaluations and "
            "checkpoints"
        )


class _Full(Dataset[dict[str, list[int]]]):
    """Rows of a dataset, each repeated up to the greatest length of a row."""

    def __init__(self, rows: Any, n_rows: int, n_tokens: int) -> None:
        self.rows = [dict(row) for row in islice(iter(rows), n_rows)]
        self.n_rows, self.n_tokens = n_rows, n_tokens

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = list(self.rows[index % len(self.rows)]["input_ids"])
        return {"input_ids": (ids * (1 + self.n_tokens // len(ids)))[: self.n_tokens]}


class _Measure(TrainerCallback):
    """Notes when each step ends, and resets the peak of a GPU's memory after the first one."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(args.device)
            if not self.ends:
                torch.cuda.reset_peak_memory_stats(args.device)
        self.ends.append(time.perf_counter())


def dry_run(trainer: QuietStarTrainer, n_tokens: int) -> DryRun:
    """Return the time and memory of a step on rows of n_tokens, measured on a few: its model has learned from them."""
    args = trainer.args
    n_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    n_steps = _n_steps(trainer)
    trainer.train_dataset = _Full(trainer.train_dataset, STEPS * n_rows, n_tokens)
    args.save_strategy, args.eval_strategy = type(args.save_strategy)("no"), type(args.eval_strategy)("no")
    args.eval_on_start, args.max_steps = False, STEPS
    args.n_ahead_min = None  # The longest thoughts take the most memory and time.
    on_gpu = torch.cuda.is_available() and args.device.type == "cuda"
    measure = _Measure(on_gpu)
    trainer.add_callback(measure)
    trainer.train()
    seconds = (measure.ends[-1] - measure.ends[0]) / (len(measure.ends) - 1)
    found = torch.tensor([seconds, float(_peak(on_gpu))], dtype=torch.float64, device=args.device)
    most = trainer.processes.gather(found).amax(0).tolist()
    return DryRun(n_rows=n_rows, n_tokens=n_tokens, seconds=most[0], n_steps=n_steps, peak=int(most[1]), on_gpu=on_gpu)


def _n_steps(trainer: QuietStarTrainer) -> int:
    """Return how many steps the whole run has, by its settings and its texts."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    *_, max_steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    return int(max_steps)


def _peak(on_gpu: bool) -> int:
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
