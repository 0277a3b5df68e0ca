"""A stream that is read from its place gives the batches that would have come next."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from quietstar.errors import DataError
from quietstar.runs.processes import ALONE, Processes
from quietstar.training import QuietStarTrainingArguments
from quietstar.training.data.datasets import TextCollator
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.stream_place import StreamPlace
from tests.training.some_texts import TOKENIZER, stream_of_files, written


def opened(place: StreamPlace, folder: Path, texts: list[str], processes: Processes = ALONE) -> StreamPlace:
    args = QuietStarTrainingArguments(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=2, dataloader_num_workers=0
    )
    stream = StreamedTextWindows(stream_of_files([texts]), TOKENIZER, 8, 3, block_size=4)
    assert place.open(stream, args, TextCollator(0), processes) is not None
    return place


def ids_of(batches: Any, n: int) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in islice(batches, n)]


@pytest.mark.parametrize("n_before", [1, 5, 12])
def test_a_resumed_stream_gives_the_next_batches(tmp_path: Path, n_before: int) -> None:
    texts = [text for text in written(20) if len(text) > 5]
    whole = opened(StreamPlace(0), tmp_path, texts)
    ids_of(whole.batches, n_before)
    state = whole.state_dict()
    expected = ids_of(whole.batches, 6)
    resumed = opened(StreamPlace(0), tmp_path, texts)
    resumed.load_state_dict(state)  # after the loader was made, and before the first batch
    assert ids_of(resumed.batches, 6) == expected
    assert resumed.state_dict() == whole.state_dict()


def test_texts_in_memory_have_no_place(tmp_path: Path) -> None:
    place = opened(StreamPlace(0), tmp_path, written(9))
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert place.open([{"input_ids": [1, 2]}], args, None, ALONE) is None
    assert place.batches is None


def test_a_process_without_texts_raises_data_error(tmp_path: Path) -> None:
    place = opened(StreamPlace(0), tmp_path, ["one text that is long enough"], Processes(1, 2))
    with pytest.raises(DataError, match="process 1 of 2 has no text of 'stream' in its share; give fewer processes"):
        next(place.batches)
