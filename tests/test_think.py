"""Thoughts are drawn from the right distribution, repeat with their seed, and are what the plain loop would write."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar.think import sample_tokens
from tests.plain_loop import greedy_thought, mismatches, plain_loop
from tests.tiny import VOCABULARY, texts, tiny_model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    tokens = sample_tokens(logits.expand(40_000, -1), temperature, generator=seeded())
    assert chi_square_is_plausible(tokens, (logits / temperature).softmax(-1))
    assert not chi_square_is_plausible(tokens, (logits / (1.1 * temperature)).softmax(-1)), "the test is blind"


def test_frequencies_hold_up_in_a_large_vocabulary() -> None:
    """The cumulative sum of many small probabilities is still even."""
    tokens = sample_tokens(torch.zeros(1, 100_000).expand(400, -1), 1.0, generator=seeded())
    groups = torch.bincount(tokens // 25_000, minlength=4)
    assert chi_square_is_plausible(tokens // 25_000, torch.full((4,), 0.25)), groups


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_temperature_0_takes_the_likeliest(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows)
    assert torch.equal(sample_tokens(logits, 0.0), logits.argmax(-1))


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5),
    st.sampled_from([0.0, 1e-4, 0.1, 1.0, 100.0, 1e6]),
    st.sets(st.integers(0, 4), min_size=1, max_size=4),
)
def test_suppressed_tokens_are_never_drawn(row: list[float], temperature: float, ids: set[int]) -> None:
    logits = torch.tensor(row).expand(200, -1)
    tokens = sample_tokens(logits, temperature, torch.tensor(sorted(ids)), seeded())
    assert not ids & set(tokens.tolist())
    assert ((tokens >= 0) & (tokens < 5)).all()


def test_suppressing_leaves_the_others_their_proportions() -> None:
    logits = torch.tensor([0.0, 5.0, 1.0, 2.0])
    tokens = sample_tokens(logits.expand(40_000, -1), 1.0, torch.tensor([1]), seeded())
    assert chi_square_is_plausible(tokens, torch.tensor([0.0, -torch.inf, 1.0, 2.0]).softmax(-1))


@given(
    st.lists(st.sampled_from([0.0, -3.0, -torch.inf, -200.0]), min_size=6, max_size=6).filter(lambda row: 0.0 in row),
    st.sampled_from([0.0, 2.0**-24, 0.5, 1 - 2.0**-24]),
)
def test_what_has_no_probability_is_never_drawn(row: list[float], uniform: float) -> None:
    """At the ends of the uniform numbers too: 0, and the largest below 1."""
    logits = torch.tensor(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **kwargs: torch.full(shape, uniform))
        token = int(sample_tokens(logits[None], 1.0))
    assert logits.softmax(-1)[token] > 0


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.zeros(1, 2).bfloat16().expand(4_000, -1)
    tokens = sample_tokens(logits, 1.0, generator=seeded())
    assert chi_square_is_plausible(tokens, torch.tensor([0.5, 0.5]))


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = torch.randn(50, VOCABULARY, generator=seeded(1))
    once, again, other = (sample_tokens(logits, 1.0, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


# ---------------------------------------------------------------------- whole thoughts


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_greedy_thoughts_are_what_the_plain_loop_would_write(family: str, left: bool) -> None:
    model = tiny_model(family, n_ahead=5)
    batch = texts(7, 3, left=left)
    with torch.no_grad():
        output = model(batch["input_ids"], batch["attention_mask"])
    written = 0
    for b, mask in enumerate(batch["attention_mask"]):
        real = mask.nonzero().flatten()
        for n, i in enumerate(real):
            thought = greedy_thought(model, batch["input_ids"][b, real[: n + 1]])
            assert output.thoughts[b, 0, i].tolist() == thought
            written += 1
    assert written == 10
    assert (output.thoughts[1, 0, batch["attention_mask"][1] == 0] == 0).all(), "nothing is thought at padding"


@pytest.mark.parametrize("mode", ["without gradient", "cached", "one pass"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_thoughts_sampled_and_replayed_say_the_same(family: str, mode: str) -> None:
    model = tiny_model(family, n_ahead=5, n_ahead_talk=3, n_passes=2, policy_weight=1.0)
    inputs = texts(8, 3, left=True)
    if mode == "one pass":
        model.train()
        model.gradient_checkpointing_enable()
    with torch.set_grad_enabled(mode != "without gradient"):
        sampled = model(**inputs, n_passes=2, thought_temperature=1.0, generator=seeded())
        replayed = model(**inputs, thoughts=sampled.thoughts)
    assert torch.equal(sampled.thoughts, replayed.thoughts)
    for name in ("logits", "talk_nll", "mixing_weight", "thought_logprob", "reward", "advantage", "loss"):
        ours, theirs = getattr(sampled, name).detach(), getattr(replayed, name).detach()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_sampled_thoughts_go_through_the_plain_loop(family: str) -> None:
    """The states kept from sampling, which training never uses, are those of the loop."""
    model = tiny_model(family, n_ahead=5, n_ahead_talk=3, n_passes=2)
    inputs = texts(8, 3)
    with torch.no_grad():
        sampled = model(**inputs, n_passes=2, thought_temperature=1.0, generator=seeded())
        plain = plain_loop(model, **inputs, thoughts=sampled.thoughts, n_ahead_talk=3)
    assert mismatches(sampled, plain, inputs["attention_mask"]) == {}


def test_thoughts_repeat_with_a_generator_and_with_the_global_seed() -> None:
    model = tiny_model(n_ahead=5)
    inputs = texts(8, 3)

    def think(seed: int, by_generator: bool) -> Tensor:
        if not by_generator:
            torch.manual_seed(seed)
        generator = seeded(seed) if by_generator else None
        with torch.no_grad():
            return model(**inputs, n_passes=2, thought_temperature=1.0, generator=generator).thoughts

    for by_generator in (False, True):
        assert torch.equal(think(0, by_generator), think(0, by_generator))
        assert not torch.equal(think(0, by_generator), think(1, by_generator))


def test_passes_think_apart() -> None:
    model = tiny_model(n_ahead=6).train()
    torch.manual_seed(0)
    thoughts = model(**texts(10), n_passes=3).thoughts[0]
    for one in range(3):
        for other in range(one):
            assert (thoughts[one] != thoughts[other]).any(-1).float().mean() > 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_a_thought_holds_no_suppressed_token(temperature: float) -> None:
    ids = list(range(0, VOCABULARY, 2))
    model = tiny_model(n_ahead=6, suppressed_token_ids=ids)
    inputs = texts(10, 10, 10, 10)
    del inputs["labels"]
    with torch.no_grad():
        output = model(**inputs, n_passes=4, thought_temperature=temperature, generator=seeded())
    assert (output.thoughts % 2 == 1).all()
    free = tiny_model(n_ahead=6)
    assert (free(**inputs, n_passes=4, thought_temperature=temperature).thoughts % 2 == 0).any()


def test_thoughts_that_were_sampled_can_be_learnt_from_whatever_is_suppressed() -> None:
    """Where no thought is written stands 0, which may be a suppressed token itself."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, suppressed_token_ids=[0, 5])
    inputs = texts(6, 3)
    with torch.no_grad():
        sampled = model(**inputs, thought_temperature=1.0, generator=seeded())
        replayed = model(**inputs, thoughts=sampled.thoughts)
    torch.testing.assert_close(replayed.thought_logprob, sampled.thought_logprob, rtol=1e-4, atol=1e-3)
    allowed = torch.ones(VOCABULARY, dtype=torch.bool)
    allowed[[0, 5]] = False
    assert torch.isfinite(replayed.thought_logprob).all()
    assert allowed[sampled.thoughts[inputs["attention_mask"][:, None].bool()]].all()


def test_a_thought_may_have_no_tokens() -> None:
    """n_ahead 2 is start and end alone."""
    model = tiny_model(n_ahead=2, n_ahead_talk=2, n_passes=2)
    inputs = texts(6, 3)
    with torch.no_grad():
        output = model(**inputs, n_passes=2)
        plain = plain_loop(model, **inputs, thoughts=output.thoughts, n_ahead_talk=2)
    assert output.thoughts.shape == (2, 2, 6, 0)
    assert output.policy_loss == 0
    assert mismatches(output, plain, inputs["attention_mask"]) == {}
