"""Processes that share work: each takes every n-th item, and all of them get all results."""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from types import FunctionType
from typing import Any, TypeVar

import torch.distributed
from accelerate import PartialState
from torch import Tensor

T = TypeVar("T")

CPU = torch.device("cpu")

PATIENCE = timedelta(days=30)
"""how long processes wait for one that has more to do; the launcher ends all of them when one dies"""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process, `rank` from 0 up, how many there are, and the device on which they exchange tensors.

    Every method that exchanges something must be called by every process.
    """

    rank: int = 0
    n: int = 1
    device: torch.device = CPU

    @classmethod
    def launched(cls, *, use_cpu: bool = False) -> "Processes":
        """Return what torchrun or Accelerate has launched, each on its own GPU; without a launcher, one process.

        `use_cpu` stays on the CPU even if there is a GPU.
        """
        if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        if not torch.distributed.is_initialized():
            PartialState(cpu=use_cpu, timeout=PATIENCE)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's items; the last item fills up, so that all processes make the same number of passes."""
        return [items[min(first + self.rank, len(items) - 1)] for first in range(0, len(items), self.n)]

    def together(self, results: list[T], n_items: int) -> list[T]:
        """Return the results of all processes, each of its `share` of n items, in the order of the items."""
        return list(chain.from_iterable(zip(*self.gathered(results), strict=True)))[:n_items]

    def gathered(self, here: T) -> list[T]:
        """Return what each process has, in the order of their ranks."""
        if self.n == 1:
            return [here]
        found: list[Any] = [None] * self.n
        torch.distributed.all_gather_object(found, here)
        return found

    def gather(self, values: Tensor) -> Tensor:
        """Return [n, ...], the tensors [...] of all processes, which have the same shape and dtype."""
        if self.n == 1:
            return values[None]
        values = values.to(self.device).contiguous()
        found = [torch.empty_like(values) for _ in range(self.n)]
        torch.distributed.all_gather(found, values)
        return torch.stack(found)

    def any(self, here: bool) -> bool:
        """Return whether it is true on any process."""
        return here if self.n == 1 else bool(self.gather(torch.tensor(float(here))).any())

    def of_first(self, here: T) -> T:
        """Return what the first process has."""
        if self.n == 1:
            return here
        found = [here]
        torch.distributed.broadcast_object_list(found, src=0)
        return found[0]

    def wait(self) -> None:
        """Wait for all processes."""
        self.gathered(None)


ALONE = Processes()


def part_ways() -> None:
    """Leave the process group at the end of a command, and end its threads.

    Threads that outlive the interpreter may abort the process. They end with the last reference to the group, and
    modules that were imported after it was formed keep one as a default argument (`group=group.WORLD`, in torch and in
    DeepSpeed): each gets None, which stands for the same group.
    """
    if not torch.distributed.is_initialized():
        return
    group = torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()
    for function in gc.get_objects():
        defaults = function.__defaults__ if type(function) is FunctionType else None  # isinstance would wake proxies
        if defaults and any(value is group for value in defaults):
            function.__defaults__ = tuple(None if value is group else value for value in defaults)
    del group
    gc.collect()
