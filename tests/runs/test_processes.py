"""Processes that share work part without threads that outlive them."""

import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import distributed

from quietstar.runs.processes import part_ways


def group_threads() -> int:
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_no_thread_of_the_group_outlives_it():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)

    def imported_late(tensor, group=distributed.group.WORLD, n=3):
        distributed.all_reduce(tensor, group=group)

    imported_late(torch.ones(2))
    assert group_threads() > 0
    dead = weakref.proxy(type("Gone", (), {})())  # whoever asks it for its class is told so
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part_ways()
    del dead
    assert group_threads() == 0
    assert imported_late.__defaults__ == (None, 3)
    part_ways()  # without a group it does nothing
