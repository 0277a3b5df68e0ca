"""Work that several processes share: each takes every n-th item, and all of them hold all results."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import torch.distributed
from accelerate import PartialState

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""for a process that has more to do than the others; the launcher ends all where one has died"""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process, `rank` from 0 up, and how many there are."""

    rank: int = 0
    n: int = 1

    @classmethod
    def launched(cls, *, use_cpu: bool = False) -> "Processes":
        """Those that torchrun or Accelerate has launched, each on a GPU of its own; without a launcher this one alone.

        Args:
            use_cpu: whether there is a GPU or not.
        """
        if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        if not torch.distributed.is_initialized():
            PartialState(cpu=use_cpu, timeout=PATIENCE)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items, as many as any other has, so that all make the same passes: the last one fills up."""
        return [items[min(first + self.rank, len(items) - 1)] for first in range(0, len(items), self.n)]

    def together(self, results: list[T], n_items: int) -> list[T]:
        """The results of all processes, each of its `share` of n items, in the order of the items."""
        return list(chain.from_iterable(zip(*self.gathered(results), strict=True)))[:n_items]

    def gathered(self, here: T) -> list[T]:
        """What each process has, in the order of their ranks; every process must call it."""
        if self.n == 1:
            return [here]
        found: list[Any] = [None] * self.n
        torch.distributed.all_gather_object(found, here)
        return found

    def of_first(self, here: T) -> T:
        """What the first process has; every process must call it."""
        if self.n == 1:
            return here
        found = [here]
        torch.distributed.broadcast_object_list(found, src=0)
        return found[0]

    def wait(self) -> None:
        """For all of them."""
        self.gathered(None)


ALONE = Processes()


def part_ways() -> None:
    """Let go of the other processes at the end of a command: threads of the group may outlive the interpreter."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
