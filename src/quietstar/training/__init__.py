"""Training: the trainer and its arguments, text, adapters, what is logged."""

from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.datasets import TextCollator, build_datasets
from quietstar.training.trainer import QuietStarTrainer

__all__ = [
    "DataArguments",
    "QuietStarTrainer",
    "QuietStarTrainingArguments",
    "TextCollator",
    "build_datasets",
]
