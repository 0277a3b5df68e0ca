"""The order of rows of policy epochs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietstar.errors import SettingsError
from quietstar.training.repeated_steps import RepeatedSteps, check_repeatable, repeated_steps
from tests.training.test_trainer import arguments


@given(st.integers(1, 20), st.integers(1, 6), st.integers(2, 4), st.integers(0, 3))
def test_each_step_comes_so_many_times_and_every_row_in_an_epoch(
    n: int, n_rows: int, n_epochs: int, epoch: int
) -> None:
    sampler = RepeatedSteps(range(n), n_rows, n_epochs, seed=5)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert order == list(sampler)
    steps = [order[i : i + n_rows] for i in range(0, len(order), n_rows)]
    for first in range(0, len(steps), n_epochs):
        assert all(step == steps[first] for step in steps[first : first + n_epochs])
    rows = [row for step in steps[::n_epochs] for row in step]
    assert sorted(rows[:n]) == list(range(n))
    assert len(rows) - n < n_rows


def test_epochs_have_orders_of_their_own() -> None:
    sampler = RepeatedSteps(range(50), 5, 2, seed=5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_rows_are_read_once_by_default(tmp_path: Path) -> None:
    assert repeated_steps(arguments(tmp_path), [1, 2], 2) is None


def test_rows_have_no_other_order(tmp_path: Path) -> None:
    args = arguments(tmp_path, policy_epochs=2, train_sampling_strategy="sequential")
    with pytest.raises(SettingsError, match="has an order of rows of its own; leave out train_sampling_strategy"):
        check_repeatable(args, [1, 2])
