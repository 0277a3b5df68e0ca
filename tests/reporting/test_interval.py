"""Wilson's interval against published values and its own defining equation; the interval over seeds and texts holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar.reporting.interval import Z_95, Share, bootstrap, over_seeds_and_texts, student_975, wilson


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


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (30, 2.0423)]
)
def test_quantiles_of_student_are_those_of_the_tables(freedom, quantile):
    assert student_975(freedom) == pytest.approx(quantile, abs=5e-5)


EFFECT = 0.05
"""nats a token"""
SPREADS = {  # standard deviations in nats: between seeds, between texts, what is left
    "texts alone": (0.0, 0.1, 0.03),
    "few seeds matter": (0.005, 0.1, 0.05),
    "both": (0.03, 0.1, 0.05),
    "seeds alone": (0.3, 0.1, 0.05),
    "noise alone": (0.0, 0.0, 0.1),
}


def simulated(n_seeds: int, n_texts: int, spread: tuple[float, float, float], generator: torch.Generator) -> Tensor:
    """Differences [R, n] of an arm from a control in a study with a known effect."""
    of_seeds, of_texts, noise = spread
    sizes = ((n_seeds, 1), of_seeds), ((1, n_texts), of_texts), ((n_seeds, n_texts), noise)
    return EFFECT + sum(s * torch.randn(size, generator=generator, dtype=torch.float64) for size, s in sizes)


@pytest.mark.parametrize("n_seeds", [2, 3, 4, 5])
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_intervals_over_seeds_and_texts_hold_the_effect_in_92_to_98_of_100_studies(spread, n_seeds):
    generator = torch.Generator().manual_seed(0)
    found = [over_seeds_and_texts(simulated(n_seeds, 64, spread, generator)) for _ in range(2000)]
    held = sum(each.low <= EFFECT <= each.high for each in found) / len(found)
    assert 0.92 <= held <= 0.98, held


def test_a_bootstrap_over_seeds_and_texts_does_not():
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        study = simulated(2, 64, SPREADS["seeds alone"], generator)
        seeds = torch.randint(2, (200, 2), generator=generator)
        texts = torch.randint(64, (200, 64), generator=generator)
        means = study[seeds[:, :, None], texts[:, None]].mean((1, 2))
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        held += bool(low <= EFFECT <= high)
    assert held / 200 < 0.7, held / 200


def test_a_planted_effect_is_found_and_none_where_there_is_none():
    generator = torch.Generator().manual_seed(0)
    planted = [over_seeds_and_texts(simulated(3, 64, SPREADS["few seeds matter"], generator)) for _ in range(200)]
    assert sum(each.low > 0 for each in planted) / 200 > 0.9
    without = [
        over_seeds_and_texts(simulated(3, 64, SPREADS["few seeds matter"], generator) - EFFECT) for _ in range(200)
    ]
    assert sum(each.low > 0 for each in without) / 200 < 0.06


def test_one_seed_has_the_interval_of_its_texts():
    values = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    found, expected = over_seeds_and_texts(values), bootstrap(values[0])
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_weights_are_those_of_a_mean_over_tokens():
    generator = torch.Generator().manual_seed(0)
    n_tokens = torch.randint(1, 9, (40,), generator=generator)
    values = torch.randn(3, 40, generator=generator)
    found = over_seeds_and_texts(values, n_tokens)
    assert found.value == pytest.approx(float((values * n_tokens).sum() / (3 * n_tokens.sum())), abs=1e-6)
    assert over_seeds_and_texts(values, 7 * torch.ones(40)) == over_seeds_and_texts(values)


def test_a_single_text_has_no_interval():
    with pytest.raises(ValueError, match="at least two"):
        over_seeds_and_texts(torch.zeros(3, 1))
