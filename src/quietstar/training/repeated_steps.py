"""The order of rows where several steps in a row read the same ones: the policy epochs of a set of thoughts."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import IterableDataset, Sampler
from transformers.trainer_utils import has_length

from quietstar.errors import SettingsError
from quietstar.runs.seeds import mixed_seed
from quietstar.training.arguments import QuietStarTrainingArguments


def check_repeatable(args: QuietStarTrainingArguments, texts: Any) -> None:
    """Raise SettingsError if policy_epochs cannot read the rows of a step again."""
    if args.policy_epochs == 1 or texts is None:
        return
    if not has_length(texts) or isinstance(texts, IterableDataset):
        raise SettingsError(
            f"policy_epochs is {args.policy_epochs}, which reads the rows of a step again, and a stream is read once; "
            "leave out --streaming, or policy_epochs"
        )
    if args.train_sampling_strategy != "random":
        raise SettingsError(
            f"policy_epochs is {args.policy_epochs}, which has an order of rows of its own; leave out "
            "train_sampling_strategy"
        )


class RepeatedSteps(Sampler[int]):
    """All rows in random order, those of a step `policy_epochs` times in a row; the first rows fill the last step up.

    Args:
        rows: the texts to train on.
        n_rows: of a step, on all processes.
        n_epochs: steps that read the same rows.
        seed: of the order.
    """

    def __init__(self, rows: Sized, n_rows: int, n_epochs: int, seed: int) -> None:
        self.rows, self.n_rows, self.n_epochs, self.seed = rows, n_rows, n_epochs, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.n_rows) * self.n_rows * self.n_epochs

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        for first in range(0, len(order), self.n_rows):
            step = [order[i % len(order)] for i in range(first, first + self.n_rows)]
            yield from step * self.n_epochs


def repeated_steps(args: QuietStarTrainingArguments, rows: Any, n_rows: int) -> RepeatedSteps | None:
    """Return the order of a run's rows, n_rows in a step; None if each is read once."""
    return None if args.policy_epochs == 1 else RepeatedSteps(rows, n_rows, args.policy_epochs, args.data_seed or 0)
