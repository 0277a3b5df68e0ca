"""Tokens are sampled from the right distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar.base import vocabulary
from quietstar.base.vocabulary import BLOCK, LMHead, choose_, sample
from tests.tiny import VOCABULARY, seeded


def chosen(logits: Tensor, temperature: float, suppressed: Tensor | None = None) -> Tensor:
    uniform = torch.rand(len(logits), 1, generator=seeded())
    return choose_(logits.T.clone(), uniform, temperature, suppressed)[0].squeeze(1)


def chi_square_is_plausible(tokens: Tensor, probability: Tensor) -> bool:
    """Counts against n x probability; five standard deviations of the statistic are allowed."""
    expected = probability * len(tokens)
    kept = expected > 5
    counts = torch.bincount(tokens, minlength=len(probability)).double()
    observed = torch.cat([counts[kept], counts[~kept].sum()[None]])
    expected = torch.cat([expected[kept], expected[~kept].sum()[None]]).double()
    statistic = float(((observed - expected) ** 2 / expected.clamp(min=1e-3)).sum())
    freedom = int(kept.sum())
    return statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


# ---------------------------------------------------------------------- one token a row


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = 2 * torch.randn(VOCABULARY, generator=seeded(1))
    tokens = chosen(logits.expand(40_000, -1), temperature)
    assert chi_square_is_plausible(tokens, (logits / temperature).softmax(-1))
    assert not chi_square_is_plausible(tokens, (logits / (1.1 * temperature)).softmax(-1)), "the test is blind"


def test_frequencies_hold_up_in_a_large_vocabulary() -> None:
    """The cumulative sum of many small probabilities is still even."""
    tokens = chosen(torch.zeros(1, 100_000).expand(400, -1), 1.0)
    groups = torch.bincount(tokens // 25_000, minlength=4)
    assert chi_square_is_plausible(tokens // 25_000, torch.full((4,), 0.25)), groups


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_temperature_0_takes_the_likeliest(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows)
    assert torch.equal(chosen(logits, 0.0), logits.argmax(-1))


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5),
    st.sampled_from([0.0, 1e-4, 0.1, 1.0, 100.0, 1e6]),
    st.sets(st.integers(0, 4), min_size=1, max_size=4),
)
def test_suppressed_tokens_are_never_sampled(row: list[float], temperature: float, ids: set[int]) -> None:
    logits = torch.tensor(row).expand(200, -1)
    tokens = chosen(logits, temperature, torch.tensor(sorted(ids)))
    assert not ids & set(tokens.tolist())
    assert ((tokens >= 0) & (tokens < 5)).all()


def test_suppressing_leaves_the_others_their_proportions() -> None:
    logits = torch.tensor([0.0, 5.0, 1.0, 2.0])
    tokens = chosen(logits.expand(40_000, -1), 1.0, torch.tensor([1]))
    assert chi_square_is_plausible(tokens, torch.tensor([0.0, -torch.inf, 1.0, 2.0]).softmax(-1))


@given(
    st.lists(st.sampled_from([0.0, -3.0, -torch.inf, -200.0]), min_size=6, max_size=6).filter(lambda row: 0.0 in row),
    st.sampled_from([0.0, 2.0**-24, 0.5, 1 - 2.0**-24]),
)
def test_tokens_of_probability_zero_are_never_sampled(row: list[float], uniform: float) -> None:
    """At the ends of the uniform numbers too: 0, and the largest below 1."""
    logits = torch.tensor(row)
    token = int(choose_(logits[:, None].clone(), torch.tensor([[uniform]]), 1.0)[0])
    assert logits.softmax(-1)[token] > 0


@given(st.integers(1, 3 * BLOCK + 1), st.floats(0, 1, exclude_max=True, width=32), st.data())
def test_a_token_is_where_the_cumulative_distribution_passes(V: int, uniform: float, data: st.DataObject) -> None:
    """Summed in blocks, in float32, against the plain sum in float64: the same word but for the rounding."""
    logits = 3 * torch.randn(1, V, generator=seeded(data.draw(st.integers(0, 99))))
    token = int(choose_(logits.T.clone(), torch.tensor([[uniform]]), 1.0)[0])
    cumulative = logits.double().softmax(-1).cumsum(-1)[0]
    before = float(cumulative[token - 1]) if token else 0.0
    assert before - 1e-5 <= uniform <= float(cumulative[token]) + 1e-5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
@pytest.mark.parametrize("ids", [None, [0, 3]])
def test_logprobs_are_of_the_sampled_distribution(temperature: float, top_p: float, ids: list[int] | None) -> None:
    logits = 2 * torch.randn(500, VOCABULARY, generator=seeded())
    suppressed = None if ids is None else torch.tensor(ids)
    uniform = torch.rand(500, 3, generator=seeded(1))
    tokens, logprob = choose_(logits.T.clone(), uniform, temperature, suppressed, top_p)
    p = (logits if ids is None else logits.index_fill(1, suppressed, -torch.inf)).div(temperature).softmax(-1)
    mass, word = p.sort(-1, descending=True)
    p = p.scatter(1, word, mass.where(mass.cumsum(-1) - mass < top_p, 0.0))
    expected = (p / p.sum(-1, keepdim=True)).gather(1, tokens).log()
    torch.testing.assert_close(logprob, expected)
    assert (choose_(logits.T.clone(), uniform, 0.0)[1] == 0).all()


def head(V: int = 11, D: int = 8, **parts: object) -> LMHead:
    return LMHead(torch.randn(V, D, generator=seeded(1)), **parts)


def test_the_same_seed_draws_the_same_tokens() -> None:
    hidden = torch.randn(50, 8, generator=seeded(2))
    once, again, other = (sample(head(VOCABULARY), hidden, 1.0, generator=seeded(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_draws_do_not_depend_on_how_many_rows_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(50, 8, generator=seeded(2))
    together = sample(head(VOCABULARY), hidden, 1.0, generator=seeded())[0]
    monkeypatch.setattr(vocabulary, "STATES", 3)
    monkeypatch.setitem(vocabulary.BYTES_AT_ONCE, "cpu", 3 * 4 * VOCABULARY)
    assert torch.equal(sample(head(VOCABULARY), hidden, 1.0, generator=seeded())[0], together)
