"""Rows of tokens to learn from: what to load, random windows of texts or packed rows, and batches of them.

Where the texts come from is in `texts`. Legend: B rows in a batch, S tokens in the longest of them.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from quietstar.errors import DataError, SettingsError
from quietstar.training.texts import is_stream, load_texts, readable, template_columns

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DataArguments",
    "StreamedTextWindows",
    "TextCollator",
    "TextWindows",
    "build_datasets",
    "load_texts",
    "pad_token_id",
]

IGNORED_LABEL = -100
MAX_WORKERS = 1024
SAMPLE_BY = ("line", "paragraph", "document")


@dataclass(kw_only=True)
class DataArguments:
    """Which texts to train on and to evaluate on, and how rows of tokens are made of them.

    Raises:
        SettingsError: for a value, or a pair of values, that no dataset could be read with.
    """

    dataset: str = field(
        default="open-web-math/open-web-math",
        metadata={
            "help": "Name of a hub dataset, or a local file, folder or glob: .txt .jsonl .json .parquet."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the hub dataset, where it has several."}
    )
    split: str = field(default="train", metadata={"help": "Split of the hub dataset to train on."})
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Texts to evaluate on, named as --dataset is; if not given, they are held out of those. "
            "It is used whole, but of a streamed one only the first --eval_size texts."
        },
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Split of a hub --eval_dataset; that of --split where not given."}
    )
    eval_size: int = field(
        default=64, metadata={"help": "Number of texts held out for evaluation; 0 evaluates on none."}
    )
    text_column: str | None = field(
        default=None,
        metadata={"help": 'Column that holds the text; "text", or the only column of strings, if not given.'},
    )
    template: str | None = field(
        default=None,
        metadata={"help": r'Text made of several columns, such as "Q: {question}\nA: {answer}".'},
    )
    sample_by: str = field(
        default="line", metadata={"help": "What one text of a .txt file is: line, paragraph or document."}
    )
    max_length: int = field(
        default=256,
        metadata={"help": "Tokens of a row: a random window of a longer text, a shorter one is padded."},
    )
    packing: bool = field(
        default=False, metadata={"help": "Fill rows with one text after another instead of padding them."}
    )
    streaming: bool | None = field(
        default=None,
        metadata={"help": "Read while training; if not given, hub datasets are streamed and files are not."},
    )

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise SettingsError(
                f"max_length is {self.max_length}, and a prediction needs a token before it: pass 2 or more"
            )
        if self.eval_size < 0:
            raise SettingsError(
                f"eval_size is {self.eval_size}: pass a number of texts, or 0 for no evaluation"
            )
        if self.sample_by not in SAMPLE_BY:
            raise SettingsError(f"sample_by is {self.sample_by!r}: pass one of {', '.join(SAMPLE_BY)}")
        if self.eval_split is not None and self.eval_dataset is None:
            raise SettingsError(
                f"eval_split is {self.eval_split!r} without an eval_dataset: pass --eval_dataset"
            )
        if self.eval_dataset == self.dataset and self.eval_split in (None, self.split):
            raise SettingsError(
                f"eval_dataset is the training set {self.dataset!r} itself: leave --eval_dataset out to hold "
                "texts out of it, or pass another --eval_split"
            )
        if self.template is not None:
            if self.text_column is not None:
                raise SettingsError(
                    "text_column and template are both given, and a text comes from one: drop one"
                )
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
        seed: decides which texts are held out and which windows are taken.

    Returns:
        The rows to train on, and those to evaluate on (None where `eval_size` is 0), the same at every
        evaluation.

    Raises:
        DataError: the texts cannot be had, or none is long enough for one prediction.
        MissingExtraError: the datasets library is not installed.
    """
    separator_id(tokenizer, args.packing)  # before a download
    texts, held_out = load_texts(args, seed)
    train: TextWindows | StreamedTextWindows
    if is_stream(texts):
        train = StreamedTextWindows(
            texts, tokenizer, args.max_length, seed, packing=args.packing, source=args.dataset
        )
    else:
        train = TextWindows(texts, tokenizer, args.max_length, seed, packing=args.packing)
    if held_out is None:
        return train, None
    try:
        evaluation = TextWindows(held_out, tokenizer, args.max_length, seed, packing=args.packing, fixed=True)
    except DataError as error:
        raise DataError(f"to evaluate on, {error}; or pass another --eval_size or --eval_dataset") from error
    return train, evaluation


class TextWindows(Dataset[dict[str, list[int]]]):
    """A random window of each text, or packed rows of all of them. Tokenized once, kept as 4 bytes a token.

    Args:
        texts: a dataset with the column "text", or strings; None stands for a text that is missing.
        tokenizer: adds its special tokens as it always does. Its eos token is added where it does not do so
            itself, and a window has it only when it reaches the end of its text.
        max_length: tokens of a row at most.
        seed: with the epoch and the index, decides where a window starts.
        packing: fill rows of exactly `max_length` tokens with one text after another; the last tokens, too
            few for a row, are dropped.
        fixed: keep the windows of epoch 0 whatever `set_epoch` says, as an evaluation needs.

    Attributes:
        n_skipped: how many texts are too short for one prediction.

    Raises:
        DataError: no text is long enough, or nothing can separate packed texts.
    """

    def __init__(
        self,
        texts: datasets.Dataset | Sequence[str | None],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        *,
        packing: bool = False,
        fixed: bool = False,
    ) -> None:
        self.max_length = max_length
        self.seed = seed
        self.fixed = fixed
        self.n_skipped = 0
        self._epoch = _shared(0)
        self._tokens = array("i")
        self._starts = array("q", [0])
        rows: Iterable[list[int]] = self._long_enough(
            token_lists(each_text(texts), tokenizer, separator_id(tokenizer, packing))
        )
        for row in packed(rows, max_length) if packing else rows:
            self._tokens.extend(row)
            self._starts.append(len(self._tokens))
        if not len(self):
            raise none_usable(self.n_skipped)

    def _long_enough(self, lists: Iterable[list[int]]) -> Iterator[list[int]]:
        for tokens in lists:
            if tokens:
                yield tokens
            else:
                self.n_skipped += 1

    def set_epoch(self, epoch: int) -> None:
        """Take other windows from here on, the same ones each time for the same epoch."""
        if not self.fixed:
            self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        index = range(len(self))[index]
        first, end = self._starts[index], self._starts[index + 1]
        first += window_start(end - first, self.max_length, self.seed, int(self._epoch), index)
        return {"input_ids": self._tokens[first : min(end, first + self.max_length)].tolist()}


class StreamedTextWindows(IterableDataset[dict[str, list[int]]]):
    """As `TextWindows`, over texts that are read while training.

    DataLoader workers all read the stream and each tokenizes its share of the texts: no text is lost or read
    twice. A window depends on its text's place in the stream and so not on the number of workers; packed rows
    do, since each worker fills its own.

    Args:
        texts: a stream with the column "text".
        tokenizer, max_length, seed, packing: as in `TextWindows`.
        source: name of the stream, for messages.

    Raises:
        DataError: nothing can separate packed texts; in an epoch, no text is long enough or reading fails.
    """

    def __init__(
        self,
        texts: datasets.IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        *,
        packing: bool = False,
        source: str = "stream",
    ) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.seed = seed
        self.packing = packing
        self.source = source
        self.separator = separator_id(tokenizer, packing)
        self._epoch = _shared(0)
        # A slot for each worker, so that no lock is needed.
        self._skipped = _shared([0] * MAX_WORKERS)

    @property
    def n_skipped(self) -> int:
        """How many texts too short for one prediction the current or last epoch has met, over all workers."""
        return int(self._skipped.sum())

    def set_epoch(self, epoch: int) -> None:
        """Take other windows from the next pass on, the same ones each time for the same epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        info = get_worker_info()
        worker, n_workers = (info.id, info.num_workers) if info else (0, 1)
        self._skipped[worker] = 0
        if worker == 0:
            self._skipped[n_workers:] = 0
        numbered = self._share(worker, n_workers)
        if self.packing:
            rows = packed((tokens for _, tokens in numbered), self.max_length)
        else:
            rows = self._windows(numbered, int(self._epoch))
        empty = True
        for row in rows:
            empty = False
            yield {"input_ids": row}
        # A worker may have nothing in its share of a short stream; that is no error if another has.
        if empty and not any(token_lists(self._read(), self.tokenizer, self.separator)):
            raise none_usable(sum(1 for _ in self._read()), self.source)

    def _read(self) -> Iterator[str | None]:
        with readable(self.source):
            yield from each_text(self.texts)

    def _share(self, worker: int, n_workers: int) -> Iterator[tuple[int, list[int]]]:
        """The usable texts of one worker, each with its place in the stream."""
        texts = islice(self._read(), worker, None, n_workers)
        for i, tokens in enumerate(token_lists(texts, self.tokenizer, self.separator)):
            if tokens:
                yield worker + i * n_workers, tokens
            else:
                self._skipped[worker] += 1

    def _windows(self, numbered: Iterable[tuple[int, list[int]]], epoch: int) -> Iterator[list[int]]:
        for i, tokens in numbered:
            start = window_start(len(tokens), self.max_length, self.seed, epoch, i)
            yield tokens[start : start + self.max_length]


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
            input_ids, attention_mask and labels, each [B, S] of int64; labels are -100 at padding.
        """
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in features]
        labels = [torch.as_tensor(row.get("labels", row["input_ids"]), dtype=torch.long) for row in features]
        extra = features[0].keys() - {"input_ids", "attention_mask", "labels"}
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
            **{name: torch.stack([torch.as_tensor(row[name]) for row in features]) for name in sorted(extra)},
        }


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with: the tokenizer's, else eos, else 0. Padding is neither seen nor learned."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def separator_id(tokenizer: PreTrainedTokenizerBase, packing: bool) -> int | None:
    """Return the token that ends a text: eos, or sep for packed rows where there is no eos.

    Raises:
        DataError: packed texts would run into one another.
    """
    if tokenizer.eos_token_id is not None or not packing:
        return tokenizer.eos_token_id
    if tokenizer.sep_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r} has no eos token, and no sep token, to put between packed "
            "texts: leave --packing out, or give the tokenizer an eos_token"
        )
    return tokenizer.sep_token_id


def each_text(texts: Any) -> Iterator[str | None]:
    """Yield the texts of a dataset or a stream with the column "text", or of a sequence of strings."""
    if not hasattr(texts, "column_names"):
        yield from texts
        return
    # Unlike iteration over rows, iteration over batches is not split among DataLoader workers by the library,
    # whose split by files would change which rows a skip() leaves out.
    for batch in texts.iter(batch_size=64):
        yield from batch["text"]


def token_lists(
    texts: Iterable[str | None],
    tokenizer: PreTrainedTokenizerBase,
    separator: int | None,
    batch_size: int = 64,
) -> Iterator[list[int]]:
    """Tokenize texts whole, each ended by `separator`; an empty list for one too short for one prediction."""
    remaining = iter(texts)
    while batch := [text or "" for text in islice(remaining, batch_size)]:
        encoded = tokenizer(
            batch, padding=False, truncation=False, return_attention_mask=False, verbose=False
        )
        for text, tokens in zip(batch, encoded["input_ids"], strict=True):
            if separator is not None and tokens[-1:] != [separator]:
                tokens = [*tokens, separator]
            yield tokens if len(tokens) > 1 and text.strip() else []


def window_start(n_tokens: int, max_length: int, seed: int, epoch: int, index: int) -> int:
    """Draw where a window of `max_length` tokens starts, each equally likely; 0 in a text that fits."""
    if n_tokens <= max_length:
        return 0
    return random.Random(f"{seed} {epoch} {index}").randint(0, n_tokens - max_length)


def packed(lists: Iterable[list[int]], max_length: int) -> Iterator[list[int]]:
    """Fill rows of exactly `max_length` tokens; drop an incomplete last row unless it is the only one."""
    rest: list[int] = []
    complete = False
    for tokens in lists:
        rest.extend(tokens)
        end = len(rest) - len(rest) % max_length
        for start in range(0, end, max_length):
            complete = True
            yield rest[start : start + max_length]
        del rest[:end]
    if rest and not complete:
        yield rest


def none_usable(n_read: int, source: str = "dataset") -> DataError:
    """The error of texts that give no row."""
    return DataError(
        f"none of the {n_read} texts of {source!r} has the two tokens that a prediction needs, all were "
        "skipped: choose another column by --text_column or --template, or pass longer texts"
    )


def _shared(values: int | list[int]) -> torch.Tensor:
    """Numbers that DataLoader workers, also persistent ones, share with the process that started them."""
    return torch.tensor(values).share_memory_()
