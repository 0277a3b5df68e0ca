"""Wilson's interval against published values and its own defining equation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietstar.reporting.interval import Z_95, Share, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_bound_lies_z_standard_errors_of_its_own_from_the_share(case):
    right, n = case
    for bound in wilson(right, n):
        assert (right / n - bound) ** 2 == pytest.approx(Z_95**2 * bound * (1 - bound) / n, abs=1e-9)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_invalid_proportions_are_refused(right, n):
    with pytest.raises(ValueError, match=f"{right} of {n}"):
        wilson(right, n)


def test_share_for_a_file():
    assert Share(0, 20).to_dict() == pytest.approx(
        {"right": 0, "n": 20, "share": 0, "low": 0, "high": 0.1611}, abs=5e-5
    )
