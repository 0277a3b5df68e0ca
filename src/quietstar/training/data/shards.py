"""Texts of datasets; those of a stream are read shard by shard, in any order, and split over ranks.

A shard is the part of a stream that comes from one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from quietstar.training.data.columns import MESSAGES

if TYPE_CHECKING:
    import datasets

ROW_BY_ROW = {
    "ArrowExamplesIterable",
    "ExamplesIterable",
    "FilteredExamplesIterable",
    "FormattedExamplesIterable",
    "MappedExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
}
"""classes of the datasets library that transform a stream row by row, so that a shard read alone gives the same rows as
within the stream; skipping, for example, does not"""


class TextShards:
    """A stream of texts as shards, without length.

    Args:
        texts: a stream with the column "text". One whose rows were skipped, taken, interleaved or shuffled counts as a
            single shard.
        left_out: number of texts to skip at the beginning of each shard; 0 for later shards.
    """

    def __init__(self, texts: datasets.IterableDataset, left_out: Sequence[int] = ()) -> None:
        self.texts = texts
        self.left_out = tuple(left_out)
        self.n_shards: int = texts.num_shards if _has_shards(texts) else 1

    def __iter__(self) -> Iterator[dict[str, str | None]]:
        """Yield rows with the text column, shard by shard."""
        name = column_of(self.texts)
        for shard in range(self.n_shards):
            for text in self.read(shard):
                yield {name: text}

    def read(self, shard: int) -> Iterator[str | None]:
        """Yield the texts of one shard in order."""
        alone = self.texts.shard(num_shards=self.n_shards, index=shard) if self.n_shards > 1 else self.texts
        n_left_out = self.left_out[shard] if shard < len(self.left_out) else 0
        return islice(each_text(alone), n_left_out, None)

    def hold_out(self, n: int) -> tuple[list[str | None], TextShards]:
        """Read the first `n` texts, or all if there are fewer, and return them and the stream without them."""
        numbered = ((shard, text) for shard in range(self.n_shards) for text in self.read(shard))
        read = list(islice(numbered, n))
        count = Counter(shard for shard, _ in read)
        left_out = [*self.left_out, *[0] * (self.n_shards - len(self.left_out))]
        left_out = [n_before + count[shard] for shard, n_before in enumerate(left_out)]
        return [text for _, text in read], TextShards(self.texts, left_out)


def texts_of_rank(shards: TextShards, order: Sequence[int], rank: int, n_ranks: int) -> Iterator[str | None]:
    """Yield the texts of one rank, so that the ranks together read each text once.

    As many shards as divide evenly are distributed whole. The remaining ones, fewer than there are ranks, are read by
    every rank, which keeps every `n_ranks`-th of their texts.

    Args:
        shards: the stream.
        order: indices of its shards in the order of distribution, the same on all ranks.
        rank: from 0 up to `n_ranks` - 1.
        n_ranks: number of processes that train together.
    """
    n_whole = len(order) - len(order) % n_ranks
    for shard in order[:n_whole][rank::n_ranks]:
        yield from shards.read(shard)
    yield from islice(chain.from_iterable(map(shards.read, order[n_whole:])), rank, None, n_ranks)


def each_text(texts: Any) -> Iterator[str | None]:
    """Yield the texts of a dataset or stream with a text column, or of a sequence of strings."""
    if not hasattr(texts, "column_names"):
        yield from texts
        return
    name = column_of(texts)
    # Unlike iteration over rows, iteration over batches is not split among DataLoader workers by the library.
    for batch in texts.iter(batch_size=64):
        yield from batch[name]


def column_of(texts: Any) -> str:
    """Return the text column: "messages" for conversations in JSON, else "text"; a stream may not know its columns."""
    return MESSAGES if MESSAGES in (texts.column_names or ()) else "text"


def _has_shards(texts: Any) -> bool:
    """Whether a stream equals its shards, read one after another."""
    layer = texts._ex_iterable
    while hasattr(layer, "ex_iterable"):
        if type(layer).__name__ not in ROW_BY_ROW:
            return False
        layer = layer.ex_iterable
    return type(layer).__name__ in ROW_BY_ROW and texts._distributed is None
