"""Sequences of tokens cut from texts: random windows, or packed. Those of a stream are in `stream`."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Protocol

import torch
from torch.utils.data import Dataset

from quietstar.errors import DataError
from quietstar.learn import IGNORED
from quietstar.text.tokens import token_ids
from quietstar.training.data.text_files import each_text

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


class Encoder(Protocol):
    """Tokenizes a batch of texts."""

    has_labels: bool
    """Tokens without a label are stored negative, as ~id."""

    def __call__(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Return the tokens of each text, or an empty list for a text that is too short for a prediction."""


class TextEncoder:
    """Tokenizes plain texts, with the tokenizer's special tokens and eos at the end of each.

    Args:
        tokenizer: adds its usual special tokens; special tokens inside a text are not parsed.
        packing: whether texts must be separated.

    Raises:
        DataError: nothing can separate packed texts.
    """

    has_labels = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, packing: bool) -> None:
        self.tokenizer, self.separator = tokenizer, separator_id(tokenizer, packing)

    def __call__(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Return the tokens of each text, or an empty list for a text that is too short for a prediction."""
        batch, lists = [text or "" for text in texts], []
        for text, tokens in zip(batch, token_ids(self.tokenizer, batch), strict=True):
            if self.separator is not None and tokens[-1:] != [self.separator]:
                tokens = [*tokens, self.separator]
            lists.append(tokens if len(tokens) > 1 and text.strip() else [])
        return lists


class TextWindows(Dataset[dict[str, list[int]]]):
    """A random window of each text, or packed sequences of all texts. Tokenized once, stored as 4 bytes for each token.

    Args:
        texts: a dataset with the column "text", or strings; None is a missing text.
        tokenizer: adds its usual special tokens. eos is added if the tokenizer does not; a window has it only if it
            reaches the end of its text.
        max_length: most tokens of a sequence.
        seed: decides, with epoch and index, where a window starts.
        packing: concatenate texts to sequences of exactly `max_length` tokens, and drop the incomplete last one.
        fixed: always use the windows of epoch 0, as evaluation needs.
        source: name of the dataset, for messages.
        encode: None for plain texts.

    Attributes:
        n_skipped: number of texts that are too short for one prediction.
        contents: identifies the sequences when a run is resumed.

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
        encode: Encoder | None = None,
    ) -> None:
        encode = encode or TextEncoder(tokenizer, packing)
        self.has_labels = encode.has_labels
        self.max_length = max_length
        self.seed = seed
        self.fixed = fixed
        self.n_skipped = 0
        self._epoch = shared(0)
        self._tokens = array("i")
        self._starts = array("q", [0])
        rows: Iterable[list[int]] = self._long_enough(token_lists(each_text(texts), encode))
        for row in packed(rows, max_length) if packing else rows:
            self._tokens.extend(row)
            self._starts.append(len(self._tokens))
        if not len(self):
            raise none_usable(self.n_skipped, source, self.has_labels)
        digest = hashlib.blake2b(self._tokens, digest_size=16)
        digest.update(self._starts)
        self.contents = {"row_digest": digest.hexdigest()}

    def _long_enough(self, lists: Iterable[list[int]]) -> Iterator[list[int]]:
        for tokens in lists:
            if tokens:
                yield tokens
            else:
                self.n_skipped += 1

    def set_epoch(self, epoch: int) -> None:
        """Use the windows of an epoch from here on."""
        if not self.fixed:
            self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        index = range(len(self))[index]
        first, end = self._starts[index], self._starts[index + 1]
        tokens = self._tokens[first:end] if self.has_labels else None
        first += window_start(end - first, self.max_length, self.seed, int(self._epoch), index, tokens)
        return row_of(self._tokens[first : min(end, first + self.max_length)].tolist(), self.has_labels)


def row_of(tokens: list[int], has_labels: bool) -> dict[str, list[int]]:
    """Return "input_ids", and "labels" if some tokens, stored as ~id, have none."""
    if not has_labels:
        return {"input_ids": tokens}
    ids = [token if token >= 0 else ~token for token in tokens]
    return {"input_ids": ids, "labels": [token if token >= 0 else IGNORED for token in tokens]}


def separator_id(tokenizer: PreTrainedTokenizerBase, packing: bool) -> int | None:
    """Return the token that ends a text: eos, or with packing sep if there is no eos.

    Raises:
        DataError: nothing can separate packed texts.
    """
    if tokenizer.eos_token_id is not None or not packing:
        return tokenizer.eos_token_id
    if tokenizer.sep_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r} has neither an eos token nor a sep token to separate packed texts: "
            "leave --packing out, or give the tokenizer an eos_token"
        )
    return tokenizer.sep_token_id


def token_lists(texts: Iterable[str | None], encode: Encoder, batch_size: int = 64) -> Iterator[list[int]]:
    """Yield the tokens of each text; an empty list if it is too short for one prediction."""
    remaining = iter(texts)
    while batch := list(islice(remaining, batch_size)):
        yield from encode(batch)


def window_start(
    n_tokens: int, max_length: int, seed: int, epoch: int, index: int, tokens: Sequence[int] | None = None
) -> int:
    """Sample where a window of `max_length` tokens starts; 0 if the text fits.

    All starts are equally likely. With `tokens`, some of which have no label, only windows with a label count.
    """
    if n_tokens <= max_length:
        return 0
    starts: Sequence[int] = range(n_tokens - max_length + 1)
    if tokens is not None:
        n_learned = [0, *accumulate(token >= 0 for token in tokens)]
        starts = [start for start in starts if n_learned[start + max_length] > n_learned[start + 1]]
    return starts[random.Random(f"{seed} {epoch} {index}").randint(0, len(starts) - 1)]


def packed(lists: Iterable[list[int]], max_length: int) -> Iterator[list[int]]:
    """Yield sequences of exactly `max_length` tokens, or a single shorter one if there is no complete one.

    Sequences without labels are left out.
    """
    for row, _, _ in packed_with_places(lists, max_length):
        yield row


def packed_with_places(
    lists: Iterable[list[int]], max_length: int, offset: int = 0, *, first: bool = True
) -> Iterator[tuple[list[int], int, int]]:
    """Pack as `packed` does, and also yield where each sequence ends.

    Args:
        lists: tokens of one text after another.
        max_length: tokens of a sequence.
        offset: number of tokens of the first text to skip.
        first: whether no sequence came before these, so that an incomplete one may be the only one.

    Yields:
        A sequence, the number of lists consumed after it, and the number of tokens consumed of the next list.
    """
    rest: list[int] = []
    n_used = 0
    for n_before, tokens in enumerate(lists):
        n_used = n_before + 1
        while len(rest) + len(tokens) - offset >= max_length:
            end = offset + max_length - len(rest)
            row = rest + tokens[offset:end]
            if any(token >= 0 for token in row[1:] or row):  # the first token is not predicted
                first = False
                yield (row, n_used, 0) if end == len(tokens) else (row, n_before, end)
            rest, offset = [], end
        rest.extend(tokens[offset:])
        offset = 0
    if first and any(token >= 0 for token in rest[1:]):
        yield rest, n_used, 0


def none_usable(n_read: int, source: str = "dataset", has_labels: bool = False) -> DataError:
    """Return the error for texts without a usable sequence, or for conversations without labels if `has_labels`."""
    if has_labels:
        return DataError(
            f"none of the {n_read} conversations of {source!r} has an assistant's answer to train on: leave "
            "--assistant_only_loss out, or give messages of role 'assistant', and a chat template that renders them"
        )
    return DataError(
        f"none of the {n_read} texts of {source!r} has the two tokens that a prediction needs, so all were skipped: "
        "choose another column with --text_column or --template, or pass longer texts"
    )


def shared(values: int | list[int] | list[list[int]]) -> torch.Tensor:
    """Return a tensor in memory that is shared with DataLoader workers, also with persistent ones."""
    return torch.tensor(values).share_memory_()
