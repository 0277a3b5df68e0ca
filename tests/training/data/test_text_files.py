"""A stream's files give its texts, each once, in any order and over any number of ranks."""

from itertools import chain

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.training.data.text_files import TextFiles, texts_of_rank
from tests.training.some_texts import stream_of, stream_of_files


def numbered(sizes):
    """Files of the given sizes, of texts that tell their file and place in it."""
    return [[f"{file}.{i}" for i in range(size)] for file, size in enumerate(sizes)]


def texts_in(files):
    return [row["text"] for row in files]


SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=7)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(1, 5), st.randoms())
def test_ranks_read_each_text_once_whatever_the_order_of_the_files(sizes, n_ranks, draw):
    files = numbered(sizes)
    order = list(range(len(sizes)))
    draw.shuffle(order)
    read = [list(texts_of_rank(TextFiles(stream_of_files(files)), order, rank, n_ranks)) for rank in range(n_ranks)]
    assert sorted(chain(*read)) == sorted(chain(*files))


def test_one_rank_reads_the_files_in_their_order():
    files = numbered([2, 0, 3])
    assert list(texts_of_rank(TextFiles(stream_of_files(files)), [2, 0, 1], 0, 1)) == files[2] + files[0]
    assert texts_in(TextFiles(stream_of_files(files))) == [*chain(*files)]


@pytest.mark.parametrize(("n_files", "n_opened"), [(6, 2), (7, 3), (8, 4), (3, 1), (2, 2)])
def test_a_rank_opens_its_own_files_and_those_that_do_not_divide(n_files, n_opened, monkeypatch):
    opened = []
    read = TextFiles.read
    monkeypatch.setattr(TextFiles, "read", lambda self, file: opened.append(file) or read(self, file))
    for rank in range(3):
        opened.clear()
        list(texts_of_rank(TextFiles(stream_of_files(numbered([4] * n_files))), range(n_files), rank, 3))
        assert len(opened) == n_opened


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(0, 12), st.integers(0, 3))
def test_what_is_held_out_is_the_beginning_and_in_no_file(sizes, n, more):
    files = numbered(sizes)
    texts = [*chain(*files)]
    held_out, rest = TextFiles(stream_of_files(files)).hold_out(n)
    assert held_out == texts[:n]
    assert texts_in(rest) == texts[n:]
    assert [list(rest.read(i)) for i in range(rest.n_files)] == [
        [text for text in file if text not in held_out] for file in files
    ]
    again, rest = rest.hold_out(more)
    assert (again, texts_in(rest)) == (texts[n : n + more], texts[n + more :])


@pytest.mark.parametrize(
    "change",
    [
        lambda stream: stream.skip(5),
        lambda stream: stream.take(7),
        lambda stream: stream.shuffle(seed=1, buffer_size=3),
        lambda stream: stream.skip(2).map(lambda row: row),
        lambda stream: datasets.interleave_datasets([stream, stream.skip(9)]),
        lambda stream: split_dataset_by_node(stream, rank=1, world_size=2),
    ],
)
def test_a_stream_whose_rows_hang_together_is_one_file(change):
    stream = change(stream_of([str(i) for i in range(12)], 4))
    files = TextFiles(stream)
    assert files.n_files == 1
    assert list(files.read(0)) == [row["text"] for row in stream]


def test_a_stream_that_is_changed_row_by_row_keeps_its_files():
    stream = stream_of([str(i) for i in range(12)], 4)
    files = TextFiles(stream.map(lambda row: row).filter(lambda row: row["text"] != "3").select_columns(["text"]))
    assert [list(files.read(i)) for i in range(files.n_files)] == [
        ["0", "1", "2"],
        ["4", "5"],
        ["6", "7", "8"],
        ["9", "10", "11"],
    ]
