"""The place in a stream of texts: where each worker of this process resumes."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from quietstar.errors import DataError
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.data.stream import StreamedTextWindows, worker_of
from quietstar.training.parts import Part


class StreamPlace(Part):
    """Keeps the place after the last row that each DataLoader worker gave; without a stream it stays empty.

    Attributes:
        batches: of the stream, from this place on, without end; None if the texts are not a stream.

    Raises:
        DataError: while batches are read: this process's share of the stream has no usable text.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = max(n_workers, 1)
        self.places: list[list[int]] = []
        self.next_worker = 0
        self.batches: Iterator[dict[str, Tensor]] | None = None

    def open(
        self, texts: Any, args: QuietStarTrainingArguments, collator: Any, processes: Processes
    ) -> DataLoader | None:
        """Return a DataLoader of this process's share of a stream, and set `batches`, which reads from it.

        Texts other than StreamedTextWindows have no place: None is returned, and `batches` is None.
        """
        self.batches = None
        if not isinstance(texts, StreamedTextWindows):
            return None
        texts.split(processes.rank, processes.n)
        texts.endless = True
        loader: DataLoader = DataLoader(
            texts,
            batch_size=args.train_batch_size,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        self.batches = self._read(texts, loader, processes)
        return loader

    def _read(
        self, stream: StreamedTextWindows, loader: DataLoader, processes: Processes
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches and move the place with them; it may be loaded from a checkpoint until the first one."""
        if self.places:
            stream.start_at(self.places, self.next_worker)
        for batch in loader:
            place = batch.pop("place")[-1].tolist()
            worker = worker_of(place, self.n_workers)
            self.places = self.places or [[0, 0, 0, 0] for _ in range(self.n_workers)]
            self.places[worker], self.next_worker = place, (worker + 1) % self.n_workers
            yield batch
        raise DataError(
            f"process {processes.rank} of {processes.n} has no text of {stream.source!r} in its share; give fewer "
            "processes, or more texts"
        )

    @property
    def n_skipped(self) -> int:
        """Texts of this epoch, in this process's share, that were too short for one prediction."""
        return sum(n_skipped for *_, n_skipped in self.places)

    def state_dict(self) -> dict[str, Any]:
        """Return the place."""
        return {"places": [list(place) for place in self.places], "next_worker": self.next_worker}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self.places, self.next_worker = [list(place) for place in state["places"]], state["next_worker"]
