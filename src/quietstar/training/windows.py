"""Rows of tokens cut from texts: random windows or packed rows, from a dataset or a stream."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from quietstar.errors import DataError
from quietstar.training.texts import readable

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

MAX_WORKERS = 1024


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
        source: name of the dataset, for messages.

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
        source: str = "dataset",
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
            raise none_usable(self.n_skipped, source)

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
        encoded = tokenizer(batch, padding=False, truncation=False, return_attention_mask=False, verbose=False)
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
