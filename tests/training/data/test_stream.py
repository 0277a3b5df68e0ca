"""A stream gives each text once, in another order each epoch, and resumes exactly."""

import json
from collections import Counter
from itertools import chain, islice
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from quietstar.errors import DataError, SettingsError
from quietstar.training.data.datasets import TextCollator
from quietstar.training.data.stream import StreamedTextWindows, worker_of
from quietstar.training.data.windows import TextWindows
from tests.elsewhere import refused
from tests.training.some_texts import TOKENIZER, ids_of, stream_of, stream_of_files, whole, written


def as_worker(windows, worker, n_workers):
    """Return the items that one of several workers gives, read in this process."""
    with pytest.MonkeyPatch.context() as patch:
        info = SimpleNamespace(id=worker, num_workers=n_workers)
        patch.setattr("quietstar.training.data.stream.get_worker_info", lambda: info)
        return list(windows)


def one_by_one(windows, n_workers, **options):
    return DataLoader(windows, batch_size=None, num_workers=n_workers, **options)


def left_after(rows, n_workers, epoch=0):
    """Return the arguments of `start_at` after these items."""
    places = {worker: [0, 0, epoch, 0] for worker in range(n_workers)}
    for row in rows:
        places[worker_of(row["place"], n_workers)] = row["place"]
    return places, (worker_of(rows[-1]["place"], n_workers) + 1) % n_workers if rows else 0


def counting_tokenizer(counted):
    """TOKENIZER, recording its texts."""

    def tokenize(texts, **options):
        counted.extend(texts)
        return TOKENIZER(texts, **options)

    class Counting:
        __call__ = staticmethod(tokenize)

        def __getattr__(self, name):
            return getattr(TOKENIZER, name)

    return Counting()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    n_ranks=st.integers(1, 4),
    n_workers=st.integers(1, 3),
    block_size=st.integers(1, 5),
    epoch=st.integers(0, 2),
    packing=st.booleans(),
)
def test_ranks_and_workers_give_each_text_once(sizes, n_ranks, n_workers, block_size, epoch, packing):
    numbers = iter(range(100))
    files = [[f"{next(numbers)}:x" for _ in range(size)] for size in sizes]
    # Rows of a single token leave none over, so that also packed ones must give every token.
    max_length = 1 if packing else 50
    windows = StreamedTextWindows(
        stream_of_files(files), TOKENIZER, max_length, 7, packing=packing, block_size=block_size
    )
    windows.set_epoch(epoch)
    given_texts = []
    for rank in range(n_ranks):
        windows.split(rank, n_ranks)
        for worker in range(n_workers):
            tokens = [*chain(*ids_of(as_worker(windows, worker, n_workers)))]
            given_texts += TOKENIZER.decode(tokens).split(TOKENIZER.eos_token)[:-1]
    assert sorted(given_texts) == sorted(chain(*files))


@pytest.mark.parametrize("n_files", [1, 3])
def test_real_workers_share_a_stream_without_overlap_or_loss(n_files):
    texts = ["", *written(60, longest=60), " "]
    windows = StreamedTextWindows(stream_of(texts, n_files).skip(5), TOKENIZER, 20, 3)
    alone, shared = list(windows), list(one_by_one(windows, 2))
    assert len(shared) == len(alone) == len(texts) - 6
    assert sorted(ids_of(shared)) == sorted(ids_of(alone))


def test_real_workers_pack_every_text_once():
    texts = written(60)
    windows = StreamedTextWindows(stream_of(texts), TOKENIZER, 8, packing=True)
    rows = ids_of(one_by_one(windows, 2))
    expected = Counter(token for text in texts for token in whole(text))
    got = Counter(token for row in rows for token in row)
    assert got <= expected
    assert (expected - got).total() < 2 * 8  # the dropped rest of each worker


def test_a_window_does_not_depend_on_the_number_of_workers():
    windows = StreamedTextWindows(stream_of(["abcdefghijklmnopqrstuvwxyz" * 4] * 20, 4), TOKENIZER, 8)
    alone = ids_of(windows)
    assert [ids_of(as_worker(windows, worker, 3)) for worker in range(3)] == [alone[worker::3] for worker in range(3)]
    windows.split(0, 2)
    first = ids_of(windows)
    windows.split(1, 2)
    assert ids_of(windows) != first  # ranks draw apart, even of the same texts


@pytest.mark.parametrize("n_files", [1, 4])
@pytest.mark.parametrize("packing", [False, True])
def test_seed_and_epoch_decide_the_order(n_files, packing):
    texts = written(100)

    def order(seed, epoch):
        windows = StreamedTextWindows(stream_of(texts, n_files), TOKENIZER, 50, seed, packing=packing, block_size=20)
        windows.set_epoch(epoch)
        return ids_of(windows)

    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert order(2, 0) == orders[2]
    in_file = StreamedTextWindows(stream_of(texts, n_files), TOKENIZER, 50, packing=packing, block_size=1)
    assert len({str(rows) for rows in [*orders, ids_of(in_file)]}) == 5


def test_texts_are_shuffled_within_their_block_and_files_among_one_another():
    texts = [f"{i}:" for i in range(60)]
    windows = StreamedTextWindows(stream_of(texts, 1), TOKENIZER, 50, block_size=20)
    numbers = [int(TOKENIZER.decode(row[:-2])) for row in ids_of(windows)]
    blocks = [numbers[i : i + 20] for i in (0, 20, 40)]
    assert [sorted(block) for block in blocks] == [list(range(i, i + 20)) for i in (0, 20, 40)]
    assert len({tuple(number % 20 for number in block) for block in [*blocks, range(20)]}) == 4

    windows = StreamedTextWindows(stream_of(texts, 30), TOKENIZER, 50, block_size=2)
    numbers = [int(TOKENIZER.decode(row[:-2])) for row in ids_of(windows)]
    files = [number // 2 for number in numbers]
    assert files[::2] == files[1::2]
    assert files[::2] != sorted(files[::2]) == list(range(30))


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_in_order_gives_what_the_same_texts_give_at_hand(packing):
    texts = [*written(200), *written(20, longest=0)]
    at_hand = TextWindows(texts, TOKENIZER, 12, 5, packing=packing)
    streamed = StreamedTextWindows(stream_of(texts), TOKENIZER, 12, 5, packing=packing, block_size=1)
    assert ids_of(streamed) == ids_of(at_hand)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("packing", [False, True])
def test_a_pass_resumes_after_any_item(packing, n_workers):
    texts = ["", *written(14, longest=30), " ", None, "z" * 50]
    windows = StreamedTextWindows(stream_of(texts), TOKENIZER, 9, 3, packing=packing, block_size=4)
    loader = one_by_one(windows, n_workers, persistent_workers=n_workers > 0)
    for epoch, rank in [(0, 0), (2, 1)]:
        windows.split(rank, 2)
        windows.set_epoch(epoch)
        rows = list(loader)
        assert len(rows) > 5
        for n_given in range(len(rows) + 1):
            windows.start_at(*left_after(rows[:n_given], max(n_workers, 1), epoch))
            assert list(loader) == rows[n_given:]
        assert list(loader) == rows  # places hold for a single pass


@pytest.mark.parametrize("packing", [False, True])
def test_an_endless_stream_repeats_epochs_and_resumes_anywhere(packing):
    def windows(endless):
        return StreamedTextWindows(stream_of(written(9, longest=20)), TOKENIZER, 9, packing=packing, endless=endless)

    finite, epochs = windows(False), []
    for epoch in range(3):
        finite.set_epoch(epoch)
        epochs += list(finite)
    n = len(epochs)
    assert list(islice(windows(True), n)) == epochs
    for n_given in range(n):
        resumed = windows(True)
        resumed.start_at(*left_after(epochs[:n_given], 1))
        assert list(islice(resumed, n - n_given)) == epochs[n_given:]


def test_an_endless_stream_ends_for_a_worker_without_texts():
    windows = StreamedTextWindows(stream_of(["ab", "cd"], 1), TOKENIZER, 9, endless=True)
    assert as_worker(windows, 2, 3) == []


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text("ab ", max_size=12), min_size=1, max_size=12).filter(
        lambda texts: any(map(str.strip, texts))
    ),
    n_workers=st.integers(1, 3),
    block_size=st.integers(1, 4),
    packing=st.booleans(),
    data=st.data(),
)
def test_a_worker_resumes_after_any_item(texts, n_workers, block_size, packing, data):
    windows = StreamedTextWindows(stream_of(texts, 1), TOKENIZER, 5, packing=packing, block_size=block_size)
    rows = [as_worker(windows, worker, n_workers) for worker in range(n_workers)]
    n_given = [data.draw(st.integers(0, len(of_worker))) for of_worker in rows]
    places = [of_worker[n - 1]["place"] if n else [0, 0, 0, 0] for of_worker, n in zip(rows, n_given, strict=True)]
    windows.start_at(places)
    for worker in range(n_workers):
        assert as_worker(windows, worker, n_workers) == rows[worker][n_given[worker] :]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("packing", [False, True])
def test_new_processes_go_on_with_batches(packing):
    """Also if workers run out of texts at different times, at the end of an epoch."""

    def loader():
        windows = StreamedTextWindows(stream_of(written(40)), TOKENIZER, 9, packing=packing, block_size=8)
        return windows, DataLoader(windows, batch_size=3, num_workers=3, collate_fn=TextCollator(0))

    batches = list(loader()[1])
    assert [list(batch["place"].shape) for batch in batches[:3]] == [[3, 4]] * 3
    ends = [{"place": batch["place"][-1].tolist()} for batch in batches]
    for n_given in (1, 2, 6, len(batches) - 2, len(batches) - 1, len(batches)):
        windows, resumed = loader()
        places, next_worker = left_after(ends[:n_given], 3)
        windows.start_at(json.loads(json.dumps(places)), next_worker)
        rest = [batch["input_ids"].tolist() for batch in resumed]
        assert rest == [batch["input_ids"].tolist() for batch in batches[n_given:]]


@pytest.mark.parametrize("packing", [False, True])
def test_texts_before_a_place_are_not_tokenized(packing):
    counted = []
    texts = written(300)
    windows = StreamedTextWindows(stream_of(texts), counting_tokenizer(counted), 9, packing=packing)
    rows = list(windows)
    assert sorted(counted) == sorted(texts)
    in_order = list(counted)
    n, offset, *_ = rows[len(rows) // 2]["place"]
    counted.clear()
    windows.start_at([[n, offset, 0, 0]])
    list(windows)
    assert counted == in_order[n:]
    assert 100 < n < 200


def test_no_places_begin_at_the_start():
    windows = StreamedTextWindows(stream_of(written(9)), TOKENIZER, 50)
    rows = list(windows)
    windows.start_at([rows[4]["place"]])
    windows.start_at([])
    assert list(windows) == rows


def test_places_of_another_number_of_workers_are_refused():
    windows = StreamedTextWindows(stream_of(written(9)), TOKENIZER, 50)
    windows.start_at([[4, 0, 0, 0]])
    for loader in (one_by_one(windows, 2), one_by_one(windows, 2)):
        with pytest.raises(SettingsError, match=r"was 1 .*is now 2.*--dataloader_num_workers 0 or 1"):
            list(loader)
    assert len(list(windows)) == 9 - 4
    windows.start_at({0: [0, 0, 0, 0], 1: [3, 0, 0, 0]})
    with pytest.raises(SettingsError, match=r"was 2 .*is now 1.*--dataloader_num_workers 2"):
        list(windows)


@pytest.mark.parametrize(
    "places",
    [
        {1: [3, 0, 0, 0]},
        {0: [4, 0, 0, 0], 1: [6, 0, 0, 0]},
        [[4, 0, 0]],
        [[-2, 0, 0, 0], [1, 0, 0, 0]],
        {0: [4, 0, 0, 0], 2: [5, 0, 0, 0]},
        3,
        None,
        ["abcd"],
        [[1, 0, None, 0]],
        [[2**63, 0, 0, 0]],
        [[i, 0, 0, 0] for i in range(2000)],
        [[9, 0, float("inf"), 0]],
    ],
)
def test_places_that_no_worker_has_are_refused(places):
    windows = StreamedTextWindows(stream_of(written(9)), TOKENIZER, 50)
    refused(lambda: windows.start_at(places), r"places are .*place of its last item", SettingsError)


@pytest.mark.parametrize(("rank", "n_ranks"), [(-1, 2), (2, 2), (0, 0)])
def test_ranks_that_do_not_exist_are_refused(rank, n_ranks):
    with pytest.raises(SettingsError, match=f"rank is {rank} of {n_ranks}"):
        StreamedTextWindows(stream_of(["abc"], 1), TOKENIZER, 8).split(rank, n_ranks)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_fails_only_if_no_worker_has_a_text(worker):
    windows = StreamedTextWindows(stream_of(["abc", ""], 1), TOKENIZER, 8, block_size=1)
    assert len(as_worker(windows, worker, 2)) == (worker == 0)
    with pytest.raises(DataError, match="none of the 2 texts"):
        as_worker(StreamedTextWindows(stream_of(["", ""], 1), TOKENIZER, 8), worker, 2)


@pytest.mark.parametrize("n_files", [1, 2])
def test_a_rank_fails_only_if_no_rank_has_a_text(n_files):
    windows = StreamedTextWindows(stream_of(["abc", ""], n_files), TOKENIZER, 8)
    n_rows = []
    for rank in range(3):
        windows.split(rank, 3)
        n_rows.append(len(list(windows)))
    assert sorted(n_rows) == [0, 0, 1]
    windows = StreamedTextWindows(stream_of(["", ""], n_files), TOKENIZER, 8)
    windows.split(2, 3)
    with pytest.raises(DataError, match="none of the 2 texts"):
        list(windows)
