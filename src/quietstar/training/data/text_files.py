"""Texts read from datasets: a stream is read file by file, in any order, and split over ranks.

A file here is what a stream can be divided into, and the datasets library calls a shard.
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
"""The layers of a stream, named as in the datasets library, through which a file alone gives the rows that it gives
within the whole. A skip is not among them, for instance: the library skips other rows of each shard."""


class TextFiles:
    """A stream of texts as the files that it is read from. It has no length, as the stream has none.

    Args:
        texts: a stream with the column "text". One whose rows were skipped, taken, interleaved or shuffled is
            read as a single file.
        left_out: how many texts at the beginning of each file are held out; 0 for files that it does not cover.
    """

    def __init__(self, texts: datasets.IterableDataset, left_out: Sequence[int] = ()) -> None:
        self.texts = texts
        self.left_out = tuple(left_out)
        self.n_files: int = texts.num_shards if _has_files(texts) else 1

    def __iter__(self) -> Iterator[dict[str, str | None]]:
        """Yield rows with the column of texts, in the order of the files."""
        name = column_of(self.texts)
        for file in range(self.n_files):
            for text in self.read(file):
                yield {name: text}

    def read(self, file: int) -> Iterator[str | None]:
        """Yield the texts of one file, by its number, in order."""
        alone = self.texts.shard(num_shards=self.n_files, index=file) if self.n_files > 1 else self.texts
        n_left_out = self.left_out[file] if file < len(self.left_out) else 0
        return islice(each_text(alone), n_left_out, None)

    def hold_out(self, n: int) -> tuple[list[str | None], TextFiles]:
        """Read the first `n` texts, or all if there are fewer, and return them and the stream without them."""
        numbered = ((file, text) for file in range(self.n_files) for text in self.read(file))
        read = list(islice(numbered, n))
        count = Counter(file for file, _ in read)
        left_out = [*self.left_out, *[0] * (self.n_files - len(self.left_out))]
        left_out = [n_before + count[file] for file, n_before in enumerate(left_out)]
        return [text for _, text in read], TextFiles(self.texts, left_out)


def texts_of_rank(files: TextFiles, order: Sequence[int], rank: int, n_ranks: int) -> Iterator[str | None]:
    """Yield the texts that are one rank's, so that ranks together read each text once.

    As many files as divide evenly go to the ranks whole. The remaining ones, fewer than there are ranks, are read
    by each rank, which keeps every `n_ranks`-th of their texts.

    The order has the numbers of all files, and is the same on all ranks.
    """
    n_whole = len(order) - len(order) % n_ranks
    for file in order[:n_whole][rank::n_ranks]:
        yield from files.read(file)
    yield from islice(chain.from_iterable(map(files.read, order[n_whole:])), rank, None, n_ranks)


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


def _has_files(texts: Any) -> bool:
    """Return whether the files of a stream, read one after another, give the stream."""
    layer = texts._ex_iterable
    while hasattr(layer, "ex_iterable"):
        if type(layer).__name__ not in ROW_BY_ROW:
            return False
        layer = layer.ex_iterable
    return type(layer).__name__ in ROW_BY_ROW and texts._distributed is None
