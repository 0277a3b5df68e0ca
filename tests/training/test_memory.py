"""Errors that say that memory is short become one line; other errors stay what they are."""

import pytest
import torch

from quietstar.errors import OutOfMemoryError
from quietstar.training.memory import is_out_of_memory, out_of_memory_in


def test_a_gpu_and_a_cpu_out_of_memory_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("something else"))


def test_where_memory_was_short_is_told_and_other_errors_stay() -> None:
    told = r"^out of memory in a step: lower the rows$"
    with pytest.raises(OutOfMemoryError, match=told), out_of_memory_in("in a step: lower the rows"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match=r"^something else$"), out_of_memory_in("in a step"):
        raise RuntimeError("something else")
