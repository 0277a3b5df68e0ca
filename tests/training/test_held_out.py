"""Held-out rows compared with their predictions before training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietstar.learn import IGNORED, Labels
from quietstar.training.held_out import HeldOut


def rows_of(nll: list[list[float]], n_processes: int = 1, size: int = 2, gain: float = 0.25) -> torch.Tensor:
    """Rows of nll, batch by batch to processes in turn, as an evaluation adds them; thoughts lower each by `gain`."""
    S = max(map(len, nll))
    base_nll = torch.tensor([row + [7.0] * (S - len(row)) for row in nll])
    ahead = torch.tensor([[5 if i < len(row) else IGNORED for i in range(S)] for row in nll])
    n_filled = -len(nll) % (size * n_processes)
    ahead = torch.cat([ahead, torch.full((n_filled, S), IGNORED)])  # rows that only fill up batches
    base_nll = torch.cat([base_nll, torch.ones(n_filled, S)])
    parts = []

    def add(to: HeldOut, first: int) -> None:
        rows = slice(first, first + size)
        labels = Labels(ahead[rows, :, None], torch.ones_like(ahead[rows], dtype=torch.bool))
        to.add(base_nll[rows], base_nll[rows, None, :, None] - gain, labels, size)

    for rank in range(n_processes):
        held_out = HeldOut()
        for first in range(rank * size, len(ahead), size * n_processes):
            add(held_out, first)
        held_out.rows(lambda rows: parts.append(rows) or rows[None])
    found = HeldOut()
    add(found, 0)
    found._batches *= len(parts[0]) // size
    return found.rows(lambda rows: torch.stack(parts))


@given(
    st.lists(st.lists(st.sampled_from([0.5, 1.0, 2.25]), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_rows_are_in_the_order_of_the_text_on_any_number_of_processes(
    nll: list[list[float]], n_processes: int, size: int
) -> None:
    expected = [[sum(row), len(row), 0.25 * len(row), len(row)] for row in nll]
    assert rows_of(nll, n_processes, size).tolist() == expected


def test_drift_is_the_mean_over_labels_with_an_interval_over_rows() -> None:
    before, now = [[1.0, 2.0, 3.0], [4.0]], [[1.5, 2.5, 3.5], [4.1]]
    held_out = HeldOut(rows_of(before))
    figures = held_out.compare(rows_of(now))
    assert figures["nll_before"] == pytest.approx(2.5)
    assert figures["drift"] == pytest.approx((3 * 0.5 + 0.1) / 4)
    assert (figures["drift_low"], figures["drift_high"]) == pytest.approx((0.1, 0.5))


def test_the_interval_is_of_differences_not_of_texts() -> None:
    """Texts differ by nats; that all of them got worse by a little is sure."""
    before = [[float(n)] for n in range(1, 30)]
    figures = HeldOut(rows_of(before)).compare(
        rows_of([[row[0] + 0.01 + 0.001 * (i % 2)] for i, row in enumerate(before)])
    )
    assert 0.009 < figures["drift_low"] < figures["drift"] < figures["drift_high"] < 0.012


def test_without_an_evaluation_before_training_nothing_is_compared() -> None:
    rows = rows_of([[1.0], [2.0]])
    assert HeldOut().compare(rows) == {}
    assert "drift_low" not in HeldOut(rows[:1]).compare(rows[:1]), "one row has no interval"
