"""Which steps are bad: those that are not finite, and spikes far above the latest good ones."""

import pytest

from quietstar.training.bad_steps import FEWEST, WINDOW, BadSteps, spike_limit


def test_nothing_is_a_spike_before_there_is_enough_to_compare_with():
    judge = BadSteps(spikes=3.0)
    assert [judge.judge(value, value) for value in (1.0, 1e9, 1.0)] == [None] * 3
    assert spike_limit([1.0] * (FEWEST - 1), 3.0) == float("inf")


def test_a_limit_is_robust():
    """A few wild steps among good ones hardly move it."""
    calm = [1.0 + 0.01 * (i % 10) for i in range(60)]
    assert spike_limit(calm + [1e6] * 10, 5.0) < 1.5
    assert spike_limit([2.0] * 60, 5.0) == pytest.approx(2.0 + 5.0 * 0.02)  # a deviation of a hundredth at least


def test_bad_steps_are_counted_and_not_compared_with():
    judge = BadSteps(spikes=5.0)
    for i in range(200):
        assert judge.judge(1.0 + 0.01 * (i % 7), 2.0) is None
    assert len(judge.losses) == len(judge.norms) == WINDOW
    before = judge.state_dict()
    assert judge.judge(float("nan"), 2.0) == "the loss is nan"
    assert judge.judge(1.0, float("inf")) == "the gradient norm is inf"
    assert judge.judge(1.0, 9.0).startswith("the gradient norm is 9, a spike above 2.1")
    assert judge.judge(0.0, 0.0) is None  # nothing is too small
    assert (judge.count, judge.in_a_row) == (3, 0)
    again = BadSteps(spikes=5.0)
    again.load_state_dict(before)
    assert again.state_dict() == before
    assert again.judge(1.0, 9.0) is not None
