"""Each row's token equals what `generate` samples for it, whatever the other rows are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from quietstar.serving.sampling import NO_TOKEN, TokenSampling, choose
from tests.tiny import seeded

V = 50


def logits_of(seed: int, B: int = 1) -> torch.Tensor:
    """[B, V]"""
    return torch.randn(B, V, generator=seeded(seed)) * 3


@given(
    seed=st.integers(0, 999), temperature=st.sampled_from([0.3, 1.0, 2.0]), top_p=st.sampled_from([0.01, 0.6, 0.95, 1])
)
def test_equal_to_the_warpers_of_transformers(seed: int, temperature: float, top_p: float) -> None:
    """Given the same random numbers."""
    logits = logits_of(seed)
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    expected = torch.multinomial(scores.softmax(-1), 1, generator=seeded(seed)).item()
    assert choose(logits, [TokenSampling(temperature, top_p, seeded(seed))]) == [expected]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """In a batch with greedy and sampled rows."""
    logits = logits_of(1, 6)
    how = [TokenSampling([0.0, 1.0][n % 2], [0.5, 1.0][n % 3 % 2], seeded(n)) for n in range(6)]
    together = choose(logits, how)
    for n in range(6):
        how[n].generator = seeded(n)
        assert choose(logits[n : n + 1], [how[n]]) == together[n : n + 1]


def test_suppressed_tokens_are_never_chosen() -> None:
    """Even if they are the likeliest by far."""
    logits = logits_of(2)
    logits[0, :40] += 100
    for temperature in (0.0, 1.0):
        for seed in range(20):
            (token,) = choose(logits, [TokenSampling(temperature, 0.1, seeded(seed))], torch.arange(40))
            assert token >= 40


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_next_to_no_temperature_is_greedy(temperature: float, dtype: torch.dtype) -> None:
    """Dividing by the temperature does not overflow."""
    logits = (logits_of(3) * 100).to(dtype)
    assert choose(logits, [TokenSampling(temperature, 0.9, seeded())]) == logits.argmax(-1).tolist()


def test_logits_that_are_not_finite_give_no_token() -> None:
    """Greedy or sampled."""
    logits = logits_of(4, 4)
    logits[1, 3], logits[2, 7] = float("nan"), float("inf")
    for temperature in (0.0, 1.0):
        tokens = choose(logits, [TokenSampling(temperature, 0.9, seeded(n)) for n in range(4)])
        assert [token == NO_TOKEN for token in tokens] == [False, True, True, False]
    assert choose(logits[:1], [TokenSampling(1.0, 1.0, seeded())], torch.arange(V)) == [NO_TOKEN]
