"""Attention of the base model over a thought grid: interchangeable backends behind one interface.

A backend turns a ThoughtGrid into keyword arguments for the base model's trunk.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from quietstar.attention.cache import BranchCache
from quietstar.attention.dense import DenseAttention
from quietstar.attention.flex import FlexAttention
from quietstar.attention.hook import can_hook
from quietstar.attention.split import SplitAttention
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid


class AttentionBackend(Protocol):
    """An attention backend: keyword arguments for the trunk that make it attend over the grid."""

    name: str
    """its name in BACKENDS"""
    branches_in_rows: bool
    """True: branches are batched with their text, row by row, and layers get all keys and values in one tensor.
    False: all branches share one row, and layers are hooked and read earlier keys and values from the cache."""

    def attending(self, base_lm: PreTrainedModel) -> AbstractContextManager[None]:
        """Return a context manager for every pass over branches."""
        ...

    def pass_kwargs(self, grid: ThoughtGrid, steps: range, cache: BranchCache, dtype: torch.dtype) -> dict[str, Any]:
        """Return keyword arguments for a pass over some steps of all branches, given the cache of everything before."""
        ...


BACKENDS: dict[str, Callable[[PreTrainedModel], AttentionBackend]] = {
    "dense": DenseAttention,
    "split": SplitAttention,
    "flex": FlexAttention,
}


def attention_backend(name: str, base_lm: PreTrainedModel) -> AttentionBackend:
    """Return a new backend by name, for a base model.

    Raises:
        SettingsError: the name is unknown, or the backend cannot run on the base model's device.
        UnsupportedModelError: the backend does not support the base model.
    """
    if name not in BACKENDS:
        raise SettingsError(f"attention backend {name!r} is unknown; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name](base_lm)


def default_backend(base_lm: PreTrainedModel) -> str:
    """Return the name of the fastest backend that supports the base model on every device."""
    return "split" if can_hook(base_lm) else "dense"
