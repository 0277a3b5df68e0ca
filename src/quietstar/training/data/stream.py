"""Sequences of tokens cut from texts that are read while training: split over ranks, shuffled, and resumable.

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

    A rank's stream is its share of the texts (see `split`), shuffled: first the order of the files, by seed and epoch,
    then each block of `block_size` texts, by seed, epoch and block number. All DataLoader workers read their rank's
    stream, and each tokenizes every W-th text. No text is lost or read twice in an epoch. A window depends on its
    text's number in the rank's stream, and so not on the number of workers; packed sequences do, as each worker packs
    its own.

    An item has "input_ids", and "place" of [n, offset, epoch, n_skipped]: after it, the worker continues with text n of
    the rank's stream in that epoch, after `offset` of its tokens (always 0 without packing); n_skipped of the worker's
    texts so far were too short for one prediction. `start_at` resumes from places.

    `split`, `set_epoch` and `start_at` take effect in the next pass. They also reach running, persistent workers, and
    must be called before that pass begins with `iter` of the DataLoader.

    Args:
        texts: a stream with the column "text".
        tokenizer, max_length, seed, packing: as in `TextWindows`.
        source: name of the stream, for messages.
        block_size: texts in a shuffle block; 1 keeps the order, also that of the files.
        endless: begin the next epoch when one ends, in each worker by itself.
        encode: as in `TextWindows`.
        contents: identifies the texts when a run is resumed.

    Raises:
        DataError: nothing can separate packed texts; in an epoch, no text is long enough or reading fails.
        SettingsError: when iterating, the places to start at were recorded with another number of workers.
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
        # A slot for each worker, so that no lock is needed. A start is W (0 if there is none), the number of the worker
        # to continue, and its place.
        self._starts = shared([[0] * 6] * MAX_WORKERS)

    def split(self, rank: int, n_ranks: int) -> None:
        """Read only the texts of this rank, one of 0 to `n_ranks` - 1.

        Raises:
            SettingsError: the rank is out of range.
        """
        if not 0 <= rank < n_ranks:
            raise SettingsError(f"rank is {rank} of {n_ranks}; give a rank from 0 to the number of ranks minus 1")
        self._rank[:] = self._rank.new_tensor([rank, n_ranks])

    def set_epoch(self, epoch: int) -> None:
        """Use the order and the windows of an epoch."""
        self._epoch.fill_(epoch)

    def start_at(self, places: Mapping[int, Sequence[int]] | Sequence[Sequence[int]], next_worker: int = 0) -> None:
        """Make the next pass, and only that one, continue after recorded places.

        It gives the items that follow, if the split, the number of workers and all arguments are the same. Texts before
        a place are read again, but not tokenized.

        Args:
            places: for each worker the "place" of its last item, or [0, 0, epoch, 0] if it has given none. If empty,
                begin at the start.
            next_worker: the worker whose turn it was, the one after the worker of the last batch (see `worker_of`), so
                that batches also come in the same order.

        Raises:
            SettingsError: a place is invalid, or of another worker.
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
                    raise ValueError("a place has four numbers of at least 0")
                if n_workers > MAX_WORKERS or worker_of(place, n_workers) != worker:
                    raise ValueError("it belongs to another worker")
                starts.append([n_workers, worker, *place])
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(
                f"places are {shown(places)}, which are invalid ({reason(error)}): for each worker, numbered from 0, "
                "pass the place of its last item, or [0, 0, epoch, 0]"
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
        """Yield the items of a worker in an epoch, from a place on."""
        rank, n_ranks = self._rank.tolist()
        texts = islice(self._read(epoch, rank, n_ranks), n, None, n_workers)
        skipped: list[int] = []
        lists = _noting_empty(token_lists(texts, self.encode), skipped)
        if self.packing:
            rows = packed_with_places(lists, self.max_length, offset, first=[n, offset] == [worker, 0])
        else:
            # texts of all ranks are numbered from 0, so the rank must enter the seed
            rows = self._windows(lists, epoch, rank + n * n_ranks, n_workers * n_ranks)
        empty = True
        for row, n_used, offset in rows:
            empty = False
            place = [n + n_used * n_workers, offset, epoch, n_skipped + len(skipped)]
            yield row_of(row, self.encode.has_labels) | {"place": place}
        # in a short stream, a worker or a rank may have no texts; it is an error only if none has any
        if empty and not any(token_lists(self._read(epoch), self.encode)):
            raise none_usable(sum(1 for _ in self._read(epoch)), self.source, self.encode.has_labels)

    def _take_start(self, slot: int, n_workers: int) -> tuple[int, int, int, int, int]:
        """Return the worker whose texts the process in a slot reads, and the place where it starts."""
        n_recorded, worker, n, offset, epoch, n_skipped = self._starts[slot].tolist()
        if not n_recorded:
            return slot, slot, 0, int(self._epoch), 0
        if n_recorded != n_workers:
            processes = n_recorded if n_recorded > 1 else "0 or 1"
            raise SettingsError(
                f"the number of processes that read {self.source!r} was {n_recorded} at the checkpoint and is now "
                f"{n_workers}, which would read other texts; give --dataloader_num_workers {processes}"
            )
        self._starts[slot] = 0
        return worker, n, offset, epoch, n_skipped

    def _read(self, epoch: int, rank: int = 0, n_ranks: int = 1) -> Iterator[str | None]:
        """Yield the shuffled texts of a rank's stream."""
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
        """Yield a window of each usable text, the number of texts consumed after it, and 0 as offset in the next."""
        for i, tokens in enumerate(lists):
            if tokens:
                some = tokens if self.encode.has_labels else None
                start = window_start(len(tokens), self.max_length, self.seed, epoch, index + i * step, some)
                yield tokens[start : start + self.max_length], i + 1, 0


def _noting_empty(lists: Iterable[list[int]], numbers: list[int]) -> Iterator[list[int]]:
    """Yield the lists, and append the indices of empty ones to `numbers`."""
    for number, tokens in enumerate(lists):
        if not tokens:
            numbers.append(number)
        yield tokens


def worker_of(place: Sequence[int], n_workers: int) -> int:
    """Return the worker that gave an item with this place."""
    return int(place[0]) % n_workers
