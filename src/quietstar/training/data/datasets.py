"""Texts to learn from: what to load, how rows of tokens are made of them, and batches of rows.

Where the texts come from is in `texts`, how they are cut in `windows`, and in `stream` where they are read while
training. Legend: B rows in a batch, S tokens in the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from quietstar.errors import DataError, SettingsError
from quietstar.learn import IGNORED
from quietstar.runs.contents import digest_of_files
from quietstar.training.data.columns import MESSAGES
from quietstar.training.data.conversations import ConversationEncoder
from quietstar.training.data.files import find_files, is_local
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.template import template_columns
from quietstar.training.data.text_files import TextFiles, column_of
from quietstar.training.data.texts import load_texts
from quietstar.training.data.windows import Encoder, TextEncoder, TextWindows, separator_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def build_datasets(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[TextWindows | StreamedTextWindows, TextWindows | None]:
    """Load texts and cut them into rows of at most `max_length` tokens.

    Args:
        args: what to load and how to cut it.
        tokenizer: the model's tokenizer, unchanged.
        seed: decides which texts are held out, in which order a stream is read and which windows are taken.

    Returns:
        The rows to train on, and those to evaluate on (None where `eval_size` is 0), the same at every
        evaluation.

    Raises:
        DataError: the texts cannot be had, or none is long enough for one prediction.
        MissingExtraError: the datasets library is not installed.
    """
    separator_id(tokenizer, args.packing)  # before a download
    files = find_files(args.dataset)[1] if args.streaming and is_local(args.dataset) else []
    texts, held_out = load_texts(args, seed)
    encode = _encoder(texts, args.dataset, tokenizer, args)
    train: TextWindows | StreamedTextWindows
    if isinstance(texts, TextFiles):
        train = StreamedTextWindows(
            texts,
            tokenizer,
            args.max_length,
            seed,
            packing=args.packing,
            source=args.dataset,
            block_size=args.shuffle_block,
            encode=encode,
            contents={"file_digest": digest_of_files(files)} if files else None,
        )
    else:
        train = TextWindows(
            texts, tokenizer, args.max_length, seed, packing=args.packing, source=args.dataset, encode=encode
        )
    if held_out is None:
        return train, None
    eval_source = args.eval_dataset or args.dataset
    try:
        evaluation = TextWindows(
            held_out,
            tokenizer,
            args.max_length,
            seed,
            packing=args.packing,
            fixed=True,
            source=eval_source,
            encode=_encoder(held_out, eval_source, tokenizer, args),
        )
    except DataError as error:
        raise DataError(f"to evaluate on, {error}; or pass another --eval_size or --eval_dataset") from error
    return train, evaluation


def _encoder(texts: Any, source: str, tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> Encoder:
    """What makes tokens of these texts."""
    if column_of(texts.texts if isinstance(texts, TextFiles) else texts) == MESSAGES:
        return ConversationEncoder(tokenizer, assistant_only=args.assistant_only_loss, source=source)
    if args.assistant_only_loss:
        raise DataError(
            f"assistant_only_loss was given, and {source!r} gives plain texts: leave it out, or pass rows with a "
            'column "messages" (or another one as --text_column)'
        )
    return TextEncoder(tokenizer, args.packing)


@dataclass
class TextCollator:
    """Makes a batch of rows, padded on the right.

    Labels come from the rows' lengths, so a token is learned even where it is also the padding token.

    Args:
        pad_token_id: what stands at padding, see `pad_token_id`.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            features: for each row "input_ids", a list or tensor of [length], and "labels" of the same length
                where some tokens are not to be learned. Anything else must be of one shape, and is stacked.

        Returns:
            input_ids, attention_mask and labels, each [B, S] of int64; labels are -100 at padding. Rows of a stream
            also give `place`, [B, 4] of int64.
        """
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in features]
        labels = [torch.as_tensor(row.get("labels", row["input_ids"]), dtype=torch.long) for row in features]
        extra = features[0].keys() - {"input_ids", "attention_mask", "labels"}
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            **{name: torch.stack([torch.as_tensor(row[name]) for row in features]) for name in sorted(extra)},
        }


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with: the tokenizer's, else eos, else 0. Padding is neither seen nor learned."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
