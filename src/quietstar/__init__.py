"""Quiet-STaR: language models that write a short hidden thought after each token and learn to from plain text."""

from importlib.metadata import version

from quietstar.config import QuietStarConfig
from quietstar.grid import ThoughtGrid
from quietstar.heads import MixingHead, ThoughtEmbeddings
from quietstar.model import QuietStarForCausalLM, QuietStarOutput

__version__ = version("quietstar")

__all__ = [
    "MixingHead",
    "QuietStarConfig",
    "QuietStarForCausalLM",
    "QuietStarOutput",
    "ThoughtEmbeddings",
    "ThoughtGrid",
]
