"""Positions to think at: exactly as many in each row as asked for, each as likely as another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietstar.training.positions import add_n_ahead, draw_positions
from tests.tiny import texts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_every_row_gets_its_share_of_the_positions_that_predict(lengths, fraction, seed):
    labels = texts(*lengths)["labels"]
    drawn = draw_positions(labels, fraction, generator(seed))
    assert drawn.dtype == torch.bool
    assert drawn.shape == labels.shape
    for row, n in zip(drawn, lengths, strict=True):
        n_labels = n - 1  # the first token is nobody's label
        expected = round(float(torch.tensor(fraction * n_labels)))
        assert abs(int(row.sum()) - expected) <= (1 if n_labels and fraction and not expected else 0)
        assert not row[n - 1 :].any(), "the last token and padding predict nothing"
        if fraction and n_labels:
            assert row.any()


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 0), (1e-9, 1), (0.25, 5), (0.33, 7), (0.5, 10), (0.999, 20), (1.0, 20)]
)
def test_exact_counts(fraction, expected):
    assert draw_positions(torch.arange(21)[None], fraction, generator()).sum() == expected


def test_labels_that_are_ignored_are_never_predicted_from():
    labels = torch.arange(40).reshape(2, 20).clone()
    labels[:, :9] = -100  # a prompt that is not learned
    drawn = draw_positions(labels, 1.0, generator())
    assert drawn.nonzero()[:, 1].unique().tolist() == list(range(8, 19))


def test_every_position_is_as_likely_as_another():
    labels = torch.arange(9).expand(4000, 9)
    share = draw_positions(labels, 0.25, generator()).float().mean(0)
    assert share[-1] == 0
    torch.testing.assert_close(share[:-1], torch.full((8,), 0.25), rtol=0, atol=0.03)


def test_a_generator_repeats_and_moves_on():
    labels = texts(30, 12)["labels"]
    source = generator(1)
    first, second = draw_positions(labels, 0.3, source), draw_positions(labels, 0.3, source)
    assert torch.equal(first, draw_positions(labels, 0.3, generator(1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw_positions(labels, 0.3, generator(2)))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), n=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_row_gets_so_many_positions(lengths, n, seed):
    labels = texts(*lengths)["labels"]
    drawn = draw_positions(labels, 1.0, generator(seed), n)
    assert drawn.sum(1).tolist() == [min(n, length - 1) for length in lengths]
    assert not (drawn & (torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) == -100)).any()


def lengths_of(n_steps: int, lowest: int | None, highest: int, seed: int = 0) -> list[int | None]:
    """The length of each step, the same in all of its batches."""
    found = []
    for step in range(n_steps):
        batches = [{}, {"labels": torch.zeros(1, 3)}]
        add_n_ahead(batches, lowest, highest, seed=seed, step=step)
        assert batches[0].get("n_ahead") == batches[1].get("n_ahead")
        found.append(batches[0].get("n_ahead"))
    return found


def test_every_length_of_thoughts_is_as_likely_as_another():
    drawn = torch.tensor(lengths_of(6000, 3, 8))
    share = torch.bincount(drawn, minlength=10).float() / len(drawn)
    torch.testing.assert_close(share, torch.tensor([0.0] * 3 + [1 / 6] * 6 + [0.0]), rtol=0, atol=0.02)
    following = torch.bincount(6 * (drawn[:-1] - 3) + drawn[1:] - 3, minlength=36) / len(drawn)
    torch.testing.assert_close(following, torch.full((36,), 1 / 36), rtol=0, atol=0.01)


def test_lengths_follow_from_seed_and_step():
    assert lengths_of(40, 2, 9, seed=5) == lengths_of(40, 2, 9, seed=5)
    assert lengths_of(40, 2, 9, seed=5) != lengths_of(40, 2, 9, seed=6)
    assert lengths_of(3, 4, 4) == [4] * 3
    assert lengths_of(3, None, 4) == [None] * 3


def test_thoughts_that_are_given_keep_their_length():
    batches = [{"thoughts": torch.zeros(1, 1, 3, 2)}, {}]
    add_n_ahead(batches, 2, 2, seed=0, step=0)
    assert [batch.get("n_ahead") for batch in batches] == [None, 2]


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=5), n=st.integers(1, 5), seed=st.integers(0, 99))
def test_positions_are_drawn_from_those_that_are_allowed(lengths, n, seed):
    labels = texts(*lengths)["labels"]
    allowed = torch.rand(labels.shape, generator=generator(seed)) < 0.3
    predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    drawn = draw_positions(labels, 1.0, generator(seed), n, allowed=allowed)
    if (allowed & predicts).any():
        assert drawn.sum(1).tolist() == [min(n, int(row.sum())) for row in allowed & predicts]
        assert not (drawn & ~(allowed & predicts)).any()
    else:
        assert int(drawn.sum()) == 1
        assert (drawn & predicts).any()
