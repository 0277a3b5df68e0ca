"""A stream's shards give each text once, in any order and for any number of ranks."""

from itertools import chain

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.training.data.shards import TextShards, texts_of_rank
from tests.training.some_texts import sharded, stream_of


def numbered(sizes):
    """Return shards of given sizes, with texts that name their shard and index."""
    return [[f"{shard}.{i}" for i in range(size)] for shard, size in enumerate(sizes)]


def texts_in(shards):
    return [row["text"] for row in shards]


SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=7)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(1, 5), st.randoms())
def test_ranks_read_each_text_once_whatever_the_order_of_the_shards(sizes, n_ranks, draw):
    shards = numbered(sizes)
    order = list(range(len(sizes)))
    draw.shuffle(order)
    read = [list(texts_of_rank(TextShards(sharded(shards)), order, rank, n_ranks)) for rank in range(n_ranks)]
    assert sorted(chain(*read)) == sorted(chain(*shards))


def test_one_rank_reads_the_shards_in_their_order():
    shards = numbered([2, 0, 3])
    assert list(texts_of_rank(TextShards(sharded(shards)), [2, 0, 1], 0, 1)) == shards[2] + shards[0]
    assert texts_in(TextShards(sharded(shards))) == [*chain(*shards)]


@pytest.mark.parametrize(("n_shards", "n_opened"), [(6, 2), (7, 3), (8, 4), (3, 1), (2, 2)])
def test_a_rank_opens_its_own_shards_and_those_that_do_not_divide(n_shards, n_opened, monkeypatch):
    opened = []
    read = TextShards.read
    monkeypatch.setattr(TextShards, "read", lambda self, shard: opened.append(shard) or read(self, shard))
    for rank in range(3):
        opened.clear()
        list(texts_of_rank(TextShards(sharded(numbered([4] * n_shards))), range(n_shards), rank, 3))
        assert len(opened) == n_opened


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(0, 12), st.integers(0, 3))
def test_what_is_held_out_is_the_beginning_and_in_no_shard(sizes, n, more):
    shards = numbered(sizes)
    texts = [*chain(*shards)]
    held_out, rest = TextShards(sharded(shards)).hold_out(n)
    assert held_out == texts[:n]
    assert texts_in(rest) == texts[n:]
    assert [list(rest.read(i)) for i in range(rest.n_shards)] == [
        [text for text in shard if text not in held_out] for shard in shards
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
def test_a_stream_whose_rows_hang_together_is_one_shard(change):
    stream = change(stream_of([str(i) for i in range(12)], 4))
    shards = TextShards(stream)
    assert shards.n_shards == 1
    assert list(shards.read(0)) == [row["text"] for row in stream]


def test_a_stream_that_is_changed_row_by_row_keeps_its_shards():
    stream = stream_of([str(i) for i in range(12)], 4)
    shards = TextShards(stream.map(lambda row: row).filter(lambda row: row["text"] != "3").select_columns(["text"]))
    assert [list(shards.read(i)) for i in range(shards.n_shards)] == [
        ["0", "1", "2"],
        ["4", "5"],
        ["6", "7", "8"],
        ["9", "10", "11"],
    ]
