"""Quiet-STaR: language models that write a short hidden thought after each token and learn to from plain text."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if "_ARGCOMPLETE" not in os.environ:  # a shell that asks what could follow need not wait for torch
    from quietstar.config import QuietStarConfig
    from quietstar.errors import QuietStarError
    from quietstar.grid import ThoughtGrid
    from quietstar.heads import MixingHead, ThoughtEmbeddings
    from quietstar.model import QuietStarForCausalLM
    from quietstar.output import QuietStarOutput

if TYPE_CHECKING:
    from quietstar.training import DataArguments, QuietStarTrainer, QuietStarTrainingArguments, build_datasets

__version__ = "0.2.0"

__all__ = [
    "DataArguments",
    "MixingHead",
    "QuietStarConfig",
    "QuietStarError",
    "QuietStarForCausalLM",
    "QuietStarOutput",
    "QuietStarTrainer",
    "QuietStarTrainingArguments",
    "ThoughtEmbeddings",
    "ThoughtGrid",
    "build_datasets",
]

_OF_TRAINING = {"DataArguments", "QuietStarTrainer", "QuietStarTrainingArguments", "build_datasets"}


def __getattr__(name: str) -> Any:
    """Names of training, imported when first asked for: a model that only speaks needs no trainer."""
    if name in _OF_TRAINING:
        return getattr(importlib.import_module("quietstar.training"), name)
    raise AttributeError(f"module 'quietstar' has no attribute {name!r}")
