"""Thoughts are drawn from the right distribution, repeat with their seed, and are what the plain loop would write."""

import pytest
import torch
from torch import Tensor

from tests.plain_loop import greedy_thought, mismatches, plain_loop
from tests.tiny import VOCABULARY, seeded, texts, tiny_model

# ---------------------------------------------------------------------- whole thoughts


@pytest.mark.parametrize("ends", [False, True], ids=["all tokens", "may end"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_greedy_thoughts_are_what_the_plain_loop_would_write(family: str, left: bool, ends: bool) -> None:
    model = tiny_model(family, n_ahead=5, learn_to_end=ends)
    batch = texts(7, 3, left=left)
    with torch.no_grad():
        output = model(batch["input_ids"], batch["attention_mask"])
    written = 0
    for b, mask in enumerate(batch["attention_mask"]):
        real = mask.nonzero().flatten()
        for n, i in enumerate(real):
            thought = greedy_thought(model, batch["input_ids"][b, real[: n + 1]])
            assert output.thoughts[b, 0, i].tolist() == thought + [-1] * (3 - len(thought))
            written += 1
    assert written == 10
    assert (output.thoughts[1, 0, batch["attention_mask"][1] == 0] == 0).all(), "nothing is thought at padding"


@pytest.mark.parametrize(
    ("p_end", "n_tokens"), [(0.6, 0), (0.45, 1), (0.25, 2), (0.2, 3), (0.1, 6), (0.09, 7), (0.02, 8)]
)
def test_greedy_thoughts_have_the_median_length_of_sampled_ones(p_end: float, n_tokens: int) -> None:
    """Not only where a single place ends more likely than not."""
    model = tiny_model(n_ahead=10, learn_to_end=True)
    torch.nn.init.zeros_(model.end_head.layer.weight)
    torch.nn.init.constant_(model.end_head.layer.bias, torch.tensor(p_end).logit().item())
    batch = texts(6)
    with torch.no_grad():
        greedy = model(batch["input_ids"]).thoughts
        decoded = model.generate(batch["input_ids"], max_new_tokens=1, do_sample=False, output_thoughts=True).thoughts
        sampled = model(batch["input_ids"].expand(400, -1), thought_temperature=1.0).thoughts
    assert ((greedy >= 0).sum(-1) == n_tokens).all()
    assert int((decoded.tokens >= 0).sum()) == n_tokens
    assert abs(float((sampled >= 0).sum(-1).float().quantile(0.5)) - n_tokens) <= 1


@pytest.mark.parametrize("mode", ["without gradient", "with", "in parts"])
@pytest.mark.parametrize("backend", ["dense", "split"])
def test_thoughts_end_as_likely_as_they_are_scored(backend: str, mode: str) -> None:
    """What was drawn, tokens and ends, has the probability that learning gives it; some end at each place."""
    model = tiny_model(n_ahead=6, n_ahead_talk=2, n_passes=3, learn_to_end=True)
    model.set_attention_backend(backend)
    if mode == "in parts":
        model.train()
        model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    with torch.set_grad_enabled(mode != "without gradient"):
        output = model(**texts(9, 4), thought_temperature=1.0, n_passes=3)
    lengths = (output.thoughts[output.talk_nll[..., 0] != 0] >= 0).sum(-1)
    assert set(lengths.tolist()) == {0, 1, 2, 3, 4}
    scored = output.thought_logprob.detach() != 0
    torch.testing.assert_close(output.drawn_logprob[scored], output.thought_logprob[scored], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["without gradient", "cached", "in parts"])
@pytest.mark.parametrize("backend", ["dense", "split"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_thoughts_sampled_and_replayed_say_the_same(family: str, backend: str, mode: str) -> None:
    """Gradients too: through the steps in which a thought was sampled, and through one pass over all of them."""
    model = tiny_model(family, n_ahead=5, n_ahead_talk=3, n_passes=2, policy_weight=1.0)
    model.set_attention_backend(backend)
    inputs = texts(8, 3, left=True)
    if mode == "in parts":
        model.train()
        model.gradient_checkpointing_enable()
    with torch.set_grad_enabled(mode != "without gradient"):
        sampled = model(**inputs, n_passes=2, thought_temperature=1.0, generator=seeded())
        replayed = model(**inputs, thoughts=sampled.thoughts)
    assert torch.equal(sampled.thoughts, replayed.thoughts)
    for name in ("logits", "talk_nll", "mixing_weight", "thought_logprob", "reward", "advantage", "loss"):
        ours, theirs = getattr(sampled, name).detach(), getattr(replayed, name).detach()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    if mode != "without gradient":
        parameters = list(model.parameters())
        losses = (output.nll + output.policy_loss for output in (sampled, replayed))
        for ours, theirs in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


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
