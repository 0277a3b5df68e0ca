"""A trainer for texts that are read while training: each process reads its share, and goes on where it stopped."""

import contextlib
from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import trainer

from quietstar.errors import DataError
from quietstar.training.data.stream import StreamedTextWindows, worker_of
from quietstar.training.durable import DurableTrainer


class StreamingTrainer(DurableTrainer):
    """transformers' Trainer, with streams of ours that know their process's share and their place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._places: list[list[int]] = []
        self._next_worker = 0
        super().__init__(*args, **kwargs)

    @property
    def _stream(self) -> StreamedTextWindows | None:
        return self.train_dataset if isinstance(self.train_dataset, StreamedTextWindows) else None

    def get_train_dataloader(self) -> Any:
        """Batches of this process; a stream of ours knows its share itself, and goes on into the next epoch."""
        dataset = self._stream
        if dataset is None:
            return super().get_train_dataloader()
        self._places = []
        dataset.split(self.args.process_index, self.args.world_size)
        dataset.endless = True
        loader = DataLoader(
            dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,  # or the first process would read for all
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        with self._at_its_place():
            super()._run_epoch(*args, **kwargs)

    @contextlib.contextmanager
    def _at_its_place(self) -> Iterator[None]:
        """Have a stream that is resumed begin where it stopped, and not be read up to there once more."""
        if not self._places or self._stream is None:
            yield
            return
        self._stream.start_at(self._places, self._next_worker)
        skip = trainer.skip_first_batches
        trainer.skip_first_batches = lambda dataloader, num_batches: dataloader
        try:
            yield
        finally:
            trainer.skip_first_batches = skip

    def _note_places(self, batches: list[dict[str, Tensor]]) -> None:
        """Take places out of batches of a stream, and remember the last one of each worker."""
        n_workers = max(self.args.dataloader_num_workers, 1)
        for batch in batches:
            if (places := batch.pop("place", None)) is not None:
                place = places[-1].tolist()
                worker = worker_of(place, n_workers)
                self._places = self._places or [[0, 0, 0, 0] for _ in range(n_workers)]
                self._places[worker], self._next_worker = place, (worker + 1) % n_workers

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The batches of one optimizer step."""
        batches, counts = super().get_batch_samples(*args, **kwargs)
        if not batches and self._stream is not None:
            raise DataError(
                f"process {self.args.process_index} of {self.args.world_size} has no text of {self._stream.source!r} "
                "in its share; give fewer processes, or more texts"
            )
        self._note_places(batches)
        return batches, counts

    @property
    def n_skipped_texts(self) -> int:
        """How many texts were too short for one prediction; of a stream, in this epoch and this process's share."""
        if self._stream is None:
            return getattr(self.train_dataset, "n_skipped", 0)
        return sum(n_skipped for *_, n_skipped in self._places)

    def progress(self) -> dict[str, Any]:
        """The place in a stream."""
        return super().progress() | {"places": self._places, "next_worker": self._next_worker}

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on at such a place."""
        super().restore_progress(progress)
        self._places, self._next_worker = progress["places"], progress["next_worker"]
