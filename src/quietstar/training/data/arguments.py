"""Which texts to train on, and how they become rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from quietstar.errors import SettingsError
from quietstar.runs.fields import check_values, option
from quietstar.training.data.template import template_columns

TEXT = "text"
SAMPLE_BY = ("line", "paragraph", "document")


@dataclass(kw_only=True)
class DataArguments:
    """The texts to train and evaluate on, and how they become sequences of tokens.

    Raises:
        SettingsError: a value, or a combination of values, is impossible.
    """

    dataset: str = option(
        "open-web-math/open-web-math",
        "name of a hub dataset, or a local file, folder or glob: .txt .jsonl .json (also .gz .zst) .parquet",
        TEXT,
    )
    dataset_config: str | None = option(None, "configuration of the hub dataset, if it has several", TEXT)
    split: str = option("train", "split of the hub dataset to train on", TEXT)
    eval_dataset: str | None = option(
        None,
        "texts to evaluate on, named like --dataset; if not given, some of the training texts are held "
        "out. All of it is used, or the first --eval_size texts if it is streamed",
        TEXT,
    )
    eval_split: str | None = option(None, "split of a hub --eval_dataset; default: that of --split", TEXT)
    eval_size: int = option(64, "number of texts held out for evaluation; 0 for no evaluation", TEXT)
    text_column: str | None = option(
        None,
        'column with the text, or with lists of messages for the chat template; default: "text", '
        '"messages", or the only column of strings',
        TEXT,
    )
    template: str | None = option(None, r'text built from several columns, such as "Q: {question}\nA: {answer}"', TEXT)
    assistant_only_loss: bool = option(False, "train only on the assistant's tokens of conversations", TEXT)
    sample_by: str = option("line", "unit of text in a .txt file: line, paragraph or document", TEXT, SAMPLE_BY)
    max_length: int = option(256, "tokens of a sequence: a random window of longer texts; others are padded", TEXT)
    packing: bool = option(False, "concatenate texts to full sequences instead of padding", TEXT)
    streaming: bool | None = option(None, "read data while training; default: yes for hub datasets, no for files", TEXT)
    shuffle_block: int = option(1000, "texts of a stream in a shuffle block; 1 keeps the order", TEXT)

    def __post_init__(self) -> None:
        check_values(self)
        if not isinstance(self.dataset, str | PathLike):
            raise SettingsError(
                f"dataset is a {type(self.dataset).__name__}; give a file, folder or hub name; rows in memory go to "
                "QuietStarTrainer as train_dataset, with their input_ids"
            )
        if self.max_length < 2:
            raise SettingsError(
                f"max_length is {self.max_length}, but a prediction needs a token before it; give 2 or more"
            )
        if self.eval_size < 0:
            raise SettingsError(f"eval_size is {self.eval_size}; give a number of texts, or 0 for no evaluation")
        if self.shuffle_block < 1:
            raise SettingsError(
                f"shuffle_block is {self.shuffle_block}; give a number of texts, or 1 to keep a stream's order"
            )
        if self.eval_split is not None and self.eval_dataset is None:
            raise SettingsError(f"eval_split is {self.eval_split!r} without an eval_dataset; give --eval_dataset")
        if self.eval_dataset == self.dataset and self.eval_split in (None, self.split):
            raise SettingsError(
                f"eval_dataset is the training set {self.dataset!r} itself: leave --eval_dataset out to hold out some "
                "of its texts, or pass another --eval_split"
            )
        if self.template is not None:
            if self.assistant_only_loss:
                raise SettingsError("assistant_only_loss needs messages, but a template gives plain texts: drop one")
            if self.text_column is not None:
                raise SettingsError("text_column and template were both given: drop one")
            # A shell passes \n as two characters.
            self.template = self.template.replace("\\n", "\n").replace("\\t", "\t")
            template_columns(self.template)
