"""Which texts to train on, and how they become rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from quietstar.errors import SettingsError
from quietstar.training.data.template import template_columns

SAMPLE_BY = ("line", "paragraph", "document")


@dataclass(kw_only=True)
class DataArguments:
    """Which texts to train on and to evaluate on, and how rows of tokens are made of them.

    Raises:
        SettingsError: for a value, or a pair of values, that no dataset could be read with.
    """

    _argument_group_name: ClassVar[str] = "text"

    dataset: str = field(
        default="open-web-math/open-web-math",
        metadata={
            "help": "name of a hub dataset, or a local file, folder or glob: .txt .jsonl .json (also .gz .zst) .parquet"
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "configuration of the hub dataset, where it has several"}
    )
    split: str = field(default="train", metadata={"help": "split of the hub dataset to train on"})
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "texts to evaluate on, named as --dataset is; if not given, they are held out of those. "
            "It is used whole, but of a streamed one only the first --eval_size texts"
        },
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "split of a hub --eval_dataset; that of --split where not given"}
    )
    eval_size: int = field(
        default=64, metadata={"help": "number of texts held out for evaluation; 0 evaluates on none"}
    )
    text_column: str | None = field(
        default=None,
        metadata={
            "help": 'column that holds the text, or lists of messages for the chat template; "text", "messages", or '
            "the only column of strings, if not given"
        },
    )
    template: str | None = field(
        default=None,
        metadata={"help": r'text made of several columns, such as "Q: {question}\nA: {answer}"'},
    )
    assistant_only_loss: bool = field(
        default=False,
        metadata={"help": "of rows of messages, learn what the assistant says and nothing else"},
    )
    sample_by: str = field(
        default="line", metadata={"help": "what one text of a .txt file is: line, paragraph or document"}
    )
    max_length: int = field(
        default=256,
        metadata={"help": "tokens of a row: a random window of a longer text, a shorter one is padded"},
    )
    packing: bool = field(
        default=False, metadata={"help": "fill rows with one text after another instead of padding them"}
    )
    streaming: bool | None = field(
        default=None,
        metadata={"help": "read while training; if not given, hub datasets are streamed and files are not"},
    )
    shuffle_block: int = field(
        default=1000, metadata={"help": "texts of a stream that are shuffled among one another; 1 keeps the order"}
    )

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise SettingsError(
                f"max_length is {self.max_length}, and a prediction needs a token before it: pass 2 or more"
            )
        if self.eval_size < 0:
            raise SettingsError(f"eval_size is {self.eval_size}: pass a number of texts, or 0 for no evaluation")
        if self.shuffle_block < 1:
            raise SettingsError(
                f"shuffle_block is {self.shuffle_block}: pass a number of texts, or 1 to keep a stream's order"
            )
        if self.sample_by not in SAMPLE_BY:
            raise SettingsError(f"sample_by is {self.sample_by!r}: pass one of {', '.join(SAMPLE_BY)}")
        if self.eval_split is not None and self.eval_dataset is None:
            raise SettingsError(f"eval_split is {self.eval_split!r} without an eval_dataset: pass --eval_dataset")
        if self.eval_dataset == self.dataset and self.eval_split in (None, self.split):
            raise SettingsError(
                f"eval_dataset is the training set {self.dataset!r} itself: leave --eval_dataset out to hold "
                "texts out of it, or pass another --eval_split"
            )
        if self.template is not None:
            if self.assistant_only_loss:
                raise SettingsError("assistant_only_loss is of messages, and a template makes plain texts: drop one")
            if self.text_column is not None:
                raise SettingsError("text_column and template are both given, and a text comes from one: drop one")
            # A shell hands over the two characters \ and n.
            self.template = self.template.replace("\\n", "\n").replace("\\t", "\t")
            template_columns(self.template)
