"""A batch, and errors that say that it does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from quietstar.errors import OutOfMemoryError

Batch = dict[str, Any]
"""what a collator returns: input_ids [B, S], labels [B, S], and more by name"""


@contextmanager
def out_of_memory_in(where: str) -> Iterator[None]:
    """Raise OutOfMemoryError if memory is short: `where` says in which part of the run, and what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory {where}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a GPU or the CPU has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)
