"""How the base model attends over a thought grid: one backend behind one small interface.

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
    """What think and talk ask of a backend: keyword arguments for the trunk that make it see the grid."""

    name: str
    """as BACKENDS lists it"""
    by_row: bool
    """whether branches are laid out row by row beside their text, and layers are given all keys and values in one
    tensor; or all in one row, and layers look the earlier ones up in the cache"""

    def attending(self, base_lm: PreTrainedModel) -> AbstractContextManager[None]:
        """Entered around every pass in which layers are handed how to attend."""
        ...

    def steps(self, grid: ThoughtGrid, steps: range, cache: BranchCache, dtype: torch.dtype) -> dict[str, Any]:
        """For some steps of all branches over the keys and values of everything before them."""
        ...


BACKENDS: dict[str, Callable[[PreTrainedModel], AttentionBackend]] = {
    "dense": DenseAttention,
    "split": SplitAttention,
    "flex": FlexAttention,
}


def attention_backend(name: str, base_lm: PreTrainedModel) -> AttentionBackend:
    """The backend of that name for a base model.

    Raises:
        SettingsError: there is no such backend, or it cannot run on the base model's device.
        UnsupportedModelError: the backend cannot serve the base model.
    """
    if name not in BACKENDS:
        raise SettingsError(f"attention backend {name!r} is unknown; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name](base_lm)


def default_backend(base_lm: PreTrainedModel) -> str:
    """The name of the fastest backend that a base model can be given on any device."""
    return "split" if can_hook(base_lm) else "dense"
