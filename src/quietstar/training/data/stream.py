"""Rows of tokens cut from texts that are read while training: split, shuffled, and resumed where they stopped.

Legend: R ranks (processes that train together), W workers (processes of a DataLoader that read for one rank).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from torch.utils.data import IterableDataset, get_worker_info

from quietstar.errors import SettingsError, reason, shown
from quietstar.training.data.text_files import TextFiles, texts_of_rank
from quietstar.training.data.texts import readable
from quietstar.training.data.windows import (
    Encoder,
    TextEncoder,
    none_usable,
    packed_with_places,
    row_of,
    shared,
    token_lists,
    window_start,
)

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

MAX_WORKERS = 1024


class StreamedTextWindows(IterableDataset[dict[str, list[int]]]):
    """As `TextWindows`, over texts that are read while training.

    A rank's stream is its share of the texts (see `split`), shuffled: the order of the files by seed and epoch,
    then each block of `block_size` texts by seed, epoch and its number. DataLoader workers all read their rank's
    stream, and each tokenizes every W-th of its texts. No text is lost or read twice in an epoch. A window depends
    on its text's number in the rank's stream and so not on the number of workers; packed rows do, since each
    worker fills its own.

    A row has "input_ids", and "place" of [n, offset, epoch, n_skipped]: after this row its worker goes on with text n
    of the rank's stream in that epoch, `offset` tokens of which are used up (always 0 without packing); so many of its
    texts before were too short for one prediction. `start_at` goes back to places.

    `split`, `set_epoch` and `start_at` hold from the next pass on. They also reach workers that are running,
    persistent ones, and must be called before that pass is begun by `iter` of the DataLoader.

    Args:
        texts: a stream with the column "text".
        tokenizer, max_length, seed, packing: as in `TextWindows`.
        source: name of the stream, for messages.
        block_size: texts that are shuffled among one another; 1 keeps the order, also that of the files.
        endless: begin the next epoch where one ends, in each worker for itself.
        encode: as in `TextWindows`.
        contents: by which a run that is resumed knows its texts again.

    Raises:
        DataError: nothing can separate packed texts; in an epoch, no text is long enough or reading fails.
        SettingsError: when iterating, places to start at were recorded with another number of workers.
    """

    def __init__(
        self,
        texts: datasets.IterableDataset | TextFiles,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        *,
        packing: bool = False,
        source: str = "stream",
        block_size: int = 1000,
        endless: bool = False,
        encode: Encoder | None = None,
        contents: Mapping[str, str] | None = None,
    ) -> None:
        self.texts = texts if isinstance(texts, TextFiles) else TextFiles(texts)
        self.encode = encode or TextEncoder(tokenizer, packing)
        self.contents = dict(contents or {})
        self.max_length = max_length
        self.seed = seed
        self.packing = packing
        self.source = source
        self.block_size = block_size
        self.endless = endless
        self._epoch = shared(0)
        self._rank = shared([0, 1])
        # Slots for each worker, so that no lock is needed. A start is W (0 where there is none), the number of the
        # worker whose texts are continued, and its place.
        self._starts = shared([[0] * 6] * MAX_WORKERS)

    def split(self, rank: int, n_ranks: int) -> None:
        """Read the share of the texts that is this rank's, of ranks 0 up to `n_ranks` - 1.

        Raises:
            SettingsError: there is no such rank.
        """
        if not 0 <= rank < n_ranks:
            raise SettingsError(f"rank is {rank} of {n_ranks}: pass a rank from 0 up, below the number of ranks")
        self._rank[:] = self._rank.new_tensor([rank, n_ranks])

    def set_epoch(self, epoch: int) -> None:
        """Take another order and other windows, the same ones each time for the same epoch."""
        self._epoch.fill_(epoch)

    def start_at(self, places: Mapping[int, Sequence[int]] | Sequence[Sequence[int]], next_worker: int = 0) -> None:
        """Let the next pass, and only that one, begin after rows that were given before.

        That pass gives the rows that follow, if the split, the number of workers and all arguments are what they
        were. Texts before a place are read again, but not tokenized.

        Args:
            places: for each worker the "place" of its last row, or [0, 0, epoch, 0] where it has given none. No
                places: begin at the start after all.
            next_worker: the worker whose turn it was, which is the one after the worker of the last batch, see
                `worker_of`: with it, batches also come in the order in which they would have come.

        Raises:
            SettingsError: a place is not one of its worker's.
        """
        try:
            numbered = places.items() if isinstance(places, Mapping) else enumerate(places)
            by_worker = {int(worker): [int(number) for number in place] for worker, place in numbered}
            n_workers = len(by_worker)
            starts = []
            for i in range(n_workers):
                worker = (next_worker + i) % n_workers
                place = by_worker.get(worker, [])
                if place[:2] == [0, 0]:
                    place = [worker, *place[1:]]
                if len(place) != 4 or not 0 <= min(place) <= max(place) < 2**63:
                    raise ValueError("a place is four numbers")
                if n_workers > MAX_WORKERS or worker_of(place, n_workers) != worker:
                    raise ValueError("it is another worker's")
                starts.append([n_workers, worker, *place])
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(
                f"places are {shown(places)}, which no workers, numbered from 0, have ({reason(error)}): pass for each "
                "the place of its last row, or [0, 0, epoch, 0]"
            ) from error
        self._starts.zero_()
        if starts:
            self._starts[:n_workers] = self._starts.new_tensor(starts)

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        info = get_worker_info()
        slot, n_workers = (info.id, info.num_workers) if info else (0, 1)
        worker, *place = self._take_start(slot, n_workers)
        while True:
            n_given = 0
            for row in self._epoch_rows(worker, n_workers, *place):
                n_given += 1
                yield row
            n, offset, epoch, _ = place
            if not self.endless or (n_given == 0 and [n, offset] == [worker, 0]):
                return
            place = [worker, 0, epoch + 1, 0]

    def _epoch_rows(
        self, worker: int, n_workers: int, n: int, offset: int, epoch: int, n_skipped: int
    ) -> Iterator[dict[str, list[int]]]:
        """The rows of a worker in an epoch, from a place on."""
        rank, n_ranks = self._rank.tolist()
        texts = islice(self._read(epoch, rank, n_ranks), n, None, n_workers)
        skipped: list[int] = []
        lists = _noting_empty(token_lists(texts, self.encode), skipped)
        if self.packing:
            rows = packed_with_places(lists, self.max_length, offset, first=[n, offset] == [worker, 0])
        else:
            # Ranks draw apart, since their streams are numbered alike.
            rows = self._windows(lists, epoch, rank + n * n_ranks, n_workers * n_ranks)
        empty = True
        for row, n_used, offset in rows:
            empty = False
            place = [n + n_used * n_workers, offset, epoch, n_skipped + len(skipped)]
            yield row_of(row, self.encode.has_labels) | {"place": place}
        # A worker, or a rank, may have nothing in its share of a short stream; that is no error if another has.
        if empty and not any(token_lists(self._read(epoch), self.encode)):
            raise none_usable(sum(1 for _ in self._read(epoch)), self.source, self.encode.has_labels)

    def _take_start(self, slot: int, n_workers: int) -> tuple[int, int, int, int, int]:
        """Which worker's texts the process in a slot reads, and the place where it starts."""
        n_recorded, worker, n, offset, epoch, n_skipped = self._starts[slot].tolist()
        if not n_recorded:
            return slot, slot, 0, int(self._epoch), 0
        if n_recorded != n_workers:
            processes = n_recorded if n_recorded > 1 else "0 or 1"
            raise SettingsError(
                f"the number of processes that read {self.source!r} was {n_recorded} where it is to go on and is now "
                f"{n_workers}, which would read other texts: pass --dataloader_num_workers {processes}"
            )
        self._starts[slot] = 0
        return worker, n, offset, epoch, n_skipped

    def _read(self, epoch: int, rank: int = 0, n_ranks: int = 1) -> Iterator[str | None]:
        """The texts of a rank's stream, shuffled."""
        order = list(range(self.texts.n_files))
        if self.block_size > 1:
            random.Random(f"{self.seed} {epoch} shards").shuffle(order)
        with readable(self.source):
            texts = texts_of_rank(self.texts, order, rank, n_ranks)
            number = 0
            while block := list(islice(texts, self.block_size)):
                random.Random(f"{self.seed} {epoch} block {number}").shuffle(block)
                yield from block
                number += 1

    def _windows(
        self, lists: Iterable[list[int]], epoch: int, index: int, step: int
    ) -> Iterator[tuple[list[int], int, int]]:
        """A window of each usable text, how many texts are used up after it, and 0 for tokens of the next."""
        for i, tokens in enumerate(lists):
            if tokens:
                some = tokens if self.encode.has_labels else None
                start = window_start(len(tokens), self.max_length, self.seed, epoch, index + i * step, some)
                yield tokens[start : start + self.max_length], i + 1, 0


def _noting_empty(lists: Iterable[list[int]], numbers: list[int]) -> Iterator[list[int]]:
    """The lists, and the numbers of those that are empty."""
    for number, tokens in enumerate(lists):
        if not tokens:
            numbers.append(number)
        yield tokens


def worker_of(place: Sequence[int], n_workers: int) -> int:
    """Return the number of the worker that gave a row with this place."""
    return int(place[0]) % n_workers
