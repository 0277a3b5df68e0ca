"""Rewards and advantages against numbers made by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietstar import learn
from tests.learn.test_labels import everywhere, look_ahead


def test_a_reward_by_hand() -> None:
    row = torch.tensor([[1, 1, 1, 1]])
    labels = look_ahead(row, everywhere(row), 2)
    base_nll = torch.tensor([[1.0, 2.0, 4.0, 99.0]])
    talk_nll = torch.tensor([[[[0.5, 1.0], [1.5, 5.0], [3.0, 99.0], [99.0, 99.0]]]])
    reward = learn.reward(base_nll, talk_nll, labels)
    assert reward.tolist() == [[[(1 - 0.5) + (2 - 1), (2 - 1.5) + (4 - 5), 4 - 3, 0]]]
    assert learn.advantage(reward).tolist() == [[[1.5, 0.0, 1.0, 0.0]]], "one thought is compared with 0"


def test_two_thoughts_are_compared_with_their_mean() -> None:
    reward = torch.tensor([[[3.0, -1.0, 2.0], [1.0, -3.0, 2.0]]])
    assert learn.advantage(reward).tolist() == [[[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("positive", [4.0, 0.0, 0.0]),
        ("centered", [4.0, -2.0, -2.0]),
        ("leave_one_out", [6.0, -3.0, -3.0]),  # 6 - (0 + 0) / 2, 0 - (6 + 0) / 2
        ("standardized", [2**0.5, -(2**-0.5), -(2**-0.5)]),  # the spread is the square root of 8
    ],
)
def test_advantages_by_hand(kind: str, expected: list[float]) -> None:
    found = learn.advantage(torch.tensor([[[6.0], [0.0], [0.0]]]), kind)
    assert found[0, :, 0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", learn.ADVANTAGES)
def test_thoughts_of_one_worth_have_no_advantage(kind: str) -> None:
    """Nor do rounding errors become one."""
    assert not learn.advantage(torch.full((1, 4, 2), 0.3), kind).any()
    reward = 0.3 + torch.tensor([0.0, 6e-8, 1.2e-7, 0.0])[None, :, None]
    assert learn.advantage(reward, kind).abs().max() < 2e-3


@pytest.mark.parametrize("kind", learn.ADVANTAGES)
def test_a_single_thought_is_compared_with_0(kind: str) -> None:
    found = learn.advantage(torch.tensor([[[2.0, -1.0]]]), kind)
    assert found.tolist() == [[[2.0, 0.0 if kind == "positive" else -1.0]]]


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6), st.floats(-9, 9, width=32))
def test_advantages_do_not_depend_on_what_all_thoughts_share(rewards: list[float], shift: float) -> None:
    reward = torch.tensor(rewards)[None, :, None]
    for kind in learn.ADVANTAGES:
        found, moved = learn.advantage(reward, kind), learn.advantage(reward + shift, kind)
        torch.testing.assert_close(found, moved, rtol=1e-3, atol=2e-2 if kind == "standardized" else 1e-3)
        if kind != "positive":
            assert abs(float(found.sum())) < 1e-3


def test_rewards_are_float32_and_without_gradient() -> None:
    row = torch.ones(1, 3, dtype=torch.long)
    labels = look_ahead(row, everywhere(row), 1)
    base_nll = torch.rand(1, 3, dtype=torch.bfloat16, requires_grad=True)
    talk_nll = torch.rand(1, 2, 3, 1, dtype=torch.bfloat16, requires_grad=True)
    reward = learn.reward(base_nll, talk_nll, labels)
    assert reward.dtype == torch.float32
    assert not reward.requires_grad
    assert not learn.advantage(reward).requires_grad
