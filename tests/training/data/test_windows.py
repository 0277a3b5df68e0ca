"""Sequences are contiguous, reproducible pieces of texts; none is lost or read twice."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from quietstar.errors import DataError
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.windows import TextWindows, packed, packed_with_places, window_start
from tests.training.some_texts import SPECIAL, TOKENIZER, ids_of, stream_of, tokenizer_of_characters, whole, written


@pytest.mark.parametrize("max_length", [2, 7, 16, 100])
def test_every_window_is_a_contiguous_piece_of_its_text_as_long_as_can_be(max_length):
    texts = written(30)
    windows = TextWindows(texts, TOKENIZER, max_length)
    assert len(windows) == len(texts)
    for text, row in zip(texts, ids_of(windows), strict=True):
        tokens = whole(text)
        assert len(row) == min(max_length, len(tokens))
        assert row in [tokens[i : i + len(row)] for i in range(len(tokens) - len(row) + 1)]


def test_windows_start_everywhere_in_the_end():
    text = "abcdefghijklmno"
    windows = TextWindows([text], TOKENIZER, 6)
    seen = Counter()
    for epoch in range(600):
        windows.set_epoch(epoch)
        seen[tuple(windows[0]["input_ids"])] += 1
    tokens = whole(text)
    assert set(seen) == {tuple(tokens[i : i + 6]) for i in range(11)}
    assert min(seen.values()) > 25  # each is expected 54 times


def test_window_start_keeps_inside():
    assert {window_start(5, 5, 0, 0, i) for i in range(50)} == {0}
    assert {window_start(7, 5, 0, 0, i) for i in range(50)} == {0, 1, 2}


def test_a_window_has_a_token_to_learn_after_its_first():
    tokens = [~1] * 10 + [1] + [~1] * 10
    assert {window_start(21, 5, 0, 0, i, tokens) for i in range(200)} == {6, 7, 8, 9}


@pytest.mark.parametrize("cls", [TextWindows, StreamedTextWindows])
def test_seed_epoch_and_index_decide_the_window(cls):
    texts = ["abcdefghijklmnopqrstuvwxyz" * 4] * 20
    texts = stream_of(texts) if cls is StreamedTextWindows else texts
    windows, same, other = (cls(texts, TOKENIZER, 8, seed) for seed in (1, 1, 2))
    first = ids_of(windows)
    assert first == ids_of(windows) == ids_of(same) != ids_of(other)
    assert len(set(map(tuple, first))) > 10
    windows.set_epoch(1)
    assert ids_of(windows) != first
    windows.set_epoch(0)
    assert ids_of(windows) == first


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_text_ends_with_one_eos_whoever_adds_it(adds_bos, adds_eos):
    tokenizer = tokenizer_of_characters(adds_bos=adds_bos, adds_eos=adds_eos, **SPECIAL)
    (row,) = ids_of(TextWindows(["abc"], tokenizer, 10))
    assert tokenizer.convert_ids_to_tokens(row) == ["<s>"] * adds_bos + ["a", "b", "c", "</s>"]


def test_without_an_eos_token_a_text_is_as_it_is():
    tokenizer = tokenizer_of_characters()
    windows = TextWindows(["abc", "a"], tokenizer, 10)
    assert ids_of(windows) == [tokenizer("abc")["input_ids"]]
    assert windows.n_skipped == 1


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_texts_too_short_are_skipped_and_counted(streamed, packing):
    texts = ["ab", "", None, "  \n", "c", "de"]
    tokenizer = tokenizer_of_characters(bos_token="<s>", sep_token="<sep>", adds_bos=True)
    make = StreamedTextWindows if streamed else TextWindows
    in_order = {"block_size": 1} if streamed else {}
    windows = make(stream_of(texts, 1) if streamed else texts, tokenizer, 3, packing=packing, **in_order)
    for _ in range(2):
        given = list(windows)
        rows = [row["input_ids"] for row in given]
        assert (given[-1]["place"][3] if streamed else windows.n_skipped) == 3
    kept = "".join(tokenizer.decode(row, skip_special_tokens=True) for row in rows)
    assert kept == ("abcd" if packing else "abcde")  # packing drops the last, incomplete row


@pytest.mark.parametrize("packing", [False, True])
def test_nothing_usable_is_an_error(packing):
    with pytest.raises(DataError, match=r"none of the 3 texts .*two tokens.*--text_column"):
        TextWindows(["", None, " "], TOKENIZER, 8, packing=packing)
    with pytest.raises(DataError, match=r"none of the 3 texts of 'my data'"):
        list(StreamedTextWindows(stream_of(["", None, " "]), TOKENIZER, 8, packing=packing, source="my data"))


@pytest.mark.parametrize("max_length", [2, 5, 16, 64])
@pytest.mark.parametrize("streamed", [False, True])
def test_packing_keeps_every_token_in_order(streamed, max_length):
    texts = written(30)
    if streamed:
        rows = ids_of(StreamedTextWindows(stream_of(texts), TOKENIZER, max_length, packing=True, block_size=1))
    else:
        rows = ids_of(TextWindows(texts, TOKENIZER, max_length, packing=True))
    tokens = [token for text in texts for token in whole(text)]
    assert {len(row) for row in rows} == {max_length}
    n_kept = len(rows) * max_length
    assert [token for row in rows for token in row] == tokens[:n_kept]
    assert len(tokens) - n_kept < max_length


def test_packed_drops_the_last_row_unless_it_is_the_only_one():
    assert list(packed([[1, 2], [3]], 5)) == [[1, 2, 3]]
    assert list(packed([[1, 2], [3], [4, 5, 6]], 5)) == [[1, 2, 3, 4, 5]]
    assert list(packed([list(range(10))], 5)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert list(packed([], 5)) == []


def test_complete_sequences_without_labels_do_not_count_as_the_only_one():
    """Otherwise a dataset could come out empty although its last sequence has labels."""
    assert list(packed([[~1, ~2, ~3], [~4, ~5, 6]], 4)) == [[~5, 6]]
    assert list(packed([[~1, ~2, ~3], [~4, 5]], 4)) == []  # one token predicts nothing
    assert list(packed([[~1, 2, ~3], [~4, ~5, 6]], 4)) == [[~1, 2, ~3, ~4]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_packing_resumes_where_a_sequence_ended(lengths, max_length):
    numbers = iter(range(100))
    lists = [[next(numbers) for _ in range(length)] for length in lengths]
    rows = list(packed_with_places(lists, max_length))
    for i, (_, n_used, offset) in enumerate(rows):
        assert sum(lengths[:n_used]) + offset == sum(len(row) for row, _, _ in rows[: i + 1])
        assert offset == 0 or offset < lengths[n_used]
        resumed = packed_with_places(lists[n_used:], max_length, offset, first=False)
        assert [(row, n_used + more, end) for row, more, end in resumed] == rows[i + 1 :]


@pytest.mark.parametrize("streamed", [False, True])
def test_packing_needs_a_token_between_texts(streamed):
    make = StreamedTextWindows if streamed else TextWindows
    texts = stream_of(["ab", "cd"], 1) if streamed else ["ab", "cd"]
    with pytest.raises(DataError, match=r"neither an eos token nor a sep token.*--packing"):
        make(texts, tokenizer_of_characters(), 3, packing=True)
    tokenizer = tokenizer_of_characters(sep_token="<sep>")
    rows = ids_of(make(texts, tokenizer, 3, packing=True))
    assert sorted(tokenizer.convert_ids_to_tokens(row) for row in rows) == [
        ["a", "b", "<sep>"],
        ["c", "d", "<sep>"],
    ]


@pytest.mark.parametrize("cls", [TextWindows, StreamedTextWindows])
def test_persistent_workers_follow_the_epoch(cls):
    texts = ["abcdefghijklmnopqrstuvwxyz" * 4] * 6
    windows = cls(stream_of(texts) if cls is StreamedTextWindows else texts, TOKENIZER, 8)
    loader = DataLoader(windows, batch_size=None, num_workers=1, persistent_workers=True)
    first = ids_of(loader)
    windows.set_epoch(1)
    second = ids_of(loader)
    assert first != second == ids_of(windows)
