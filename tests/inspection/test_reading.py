"""Thoughts grown on a text read once say what `forward` says: anywhere, in whatever parts, of any length."""

import pytest
import torch

from quietstar.errors import SettingsError
from quietstar.inspection import reading
from quietstar.inspection.reading import Reading
from quietstar.policy import ThinkPolicy
from quietstar.think import Sampling
from tests.tiny import FAMILIES, random_thoughts, seeded, texts, tiny_model

S, N_AHEAD = 13, 6
NOW_AND_THEN = torch.tensor([0, 1, 4, 7, 11, 12])


@pytest.mark.parametrize("family", FAMILIES)
def test_given_thoughts_say_what_forward_says(family: str) -> None:
    model = tiny_model(family, n_ahead=N_AHEAD)
    row = texts(S)
    thoughts = random_thoughts(model, 1, S)
    expected = model(row["input_ids"], thoughts=thoughts, labels=row["labels"], n_ahead_talk=3)
    found = Reading(model, row["input_ids"][0]).after(NOW_AND_THEN, thoughts[0, 0, NOW_AND_THEN], 3)
    at = NOW_AND_THEN[:3]  # where all labels are there
    assert torch.allclose(found.weight[:3], expected.mixing_weight[0, 0, at], atol=1e-4)
    logprob = model.thinker().trunk.logits(found.mixed[:3]).log_softmax(-1)
    ahead = row["input_ids"][0, at[:, None] + torch.arange(1, 4)]
    assert torch.allclose(-logprob.gather(2, ahead[..., None])[..., 0], expected.talk_nll[0, 0, at], atol=1e-3)
    at_temperature = model.config.reinforce_temperature
    model.config.reinforce_temperature = 1.0
    again = model(row["input_ids"], thoughts=thoughts, labels=row["labels"], n_ahead_talk=3)
    model.config.reinforce_temperature = at_temperature
    assert torch.allclose(found.thought_logprob[:3], again.thought_logprob[0, 0, at], atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_a_text_read_in_parts_is_the_text(family: str) -> None:
    model, ids = tiny_model(family, n_ahead=N_AHEAD), texts(S)["input_ids"][0]
    whole, parts = Reading(model, ids), Reading(model, ids, at_once=4)
    for n_read in (4, 8, 12, 13):
        assert len(parts) == n_read
        assert parts.is_read == (n_read == S)
        if not parts.is_read:
            parts.read_on(4)
    assert torch.allclose(parts.h_base, whole.h_base, atol=1e-4)
    at = torch.tensor([S - 1])
    assert torch.equal(parts.think(at), whole.think(at))
    said = [of.after(at, whole.think(at)).mixed for of in (parts, whole)]
    assert torch.allclose(*said, atol=1e-4)


def test_predictions_by_thought_alone_and_mixed_are_forwards() -> None:
    model = tiny_model(n_ahead=N_AHEAD)
    row = texts(S)
    read = Reading(model, row["input_ids"][0])
    everywhere = torch.arange(S)
    thoughts = random_thoughts(model, 1, S)
    found = read.after(everywhere, thoughts[0, 0])
    expected = model(row["input_ids"], thoughts=thoughts)
    assert torch.allclose(read.logits(found.mixed[:, 0]), expected.logits[0], atol=1e-4)
    assert torch.allclose(read.logits(read.h_base), model.base_lm(row["input_ids"]).logits[0], atol=1e-4)
    w = found.weight[:, 0, None]
    by_hand = (1 - w) * read.h_base + w * found.alone[:, 0]
    assert torch.allclose(by_hand, found.mixed[:, 0], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_it_thinks_what_forward_thinks(family: str, temperature: float) -> None:
    model = tiny_model(family, n_ahead=N_AHEAD)
    row = texts(S)
    read = Reading(model, row["input_ids"][0])
    everywhere = torch.arange(S)
    found = read.think(everywhere, Sampling(temperature=temperature, generator=seeded(3)))
    expected = model(row["input_ids"], thought_temperature=temperature, generator=seeded(3))
    assert torch.equal(found, expected.thoughts[0, 0])


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_ahead=N_AHEAD)
    read = Reading(model, texts(S)["input_ids"][0])
    everywhere = torch.arange(S)
    whole = read.think(everywhere)
    said = read.after(everywhere, whole, 2)
    monkeypatch.setattr(reading, "BRANCH_TOKENS", 20)
    assert len(list(read._grids(everywhere, N_AHEAD))) > 3
    assert torch.equal(read.think(everywhere), whole)
    again = read.after(everywhere, whole, 2)
    for name in ("weight", "alone", "mixed", "thought_logprob"):
        assert torch.allclose(getattr(said, name), getattr(again, name), atol=1e-5), name


@pytest.mark.parametrize("k", [0, 1, 3, 9])
def test_a_thought_of_any_length_is_that_of_a_model_with_that_n_ahead(k: int) -> None:
    model = tiny_model("mistral-window", n_ahead=N_AHEAD)
    row = texts(S)
    read = Reading(model, row["input_ids"][0])
    model.config.n_ahead = k + 2
    thoughts = random_thoughts(model, 1, S)
    expected = model(row["input_ids"], thoughts=thoughts)
    model.config.n_ahead = N_AHEAD
    found = read.after(torch.arange(S), thoughts[0, 0])
    assert found.thought_logprob.shape == (S, k)
    assert torch.allclose(read.logits(found.mixed[:, 0]), expected.logits[0], atol=1e-4)


def test_a_policy_decides_and_says_why() -> None:
    model = tiny_model(n_ahead=N_AHEAD)
    row = texts(S)
    read = Reading(model, row["input_ids"][0])
    may_think = torch.arange(S) >= 2
    policy = ThinkPolicy.parse("entropy:2.5,budget:4")
    at, reasons = read.decide(policy, may_think)
    expected = model(row["input_ids"], think=policy, think_at=may_think[None])
    written = expected.thoughts[0, 0].any(-1).nonzero().squeeze(1)
    assert torch.equal(at, written)
    assert 0 < len(at) <= 4
    assert reasons[:2] == ["", ""]
    assert all("entropy" in reason and "thoughts had" in reason for reason in reasons[2:])


def test_nothing_thought_is_nothing_said() -> None:
    model = tiny_model(n_ahead=N_AHEAD)
    read = Reading(model, texts(S)["input_ids"][0])
    none = torch.zeros(0, dtype=torch.long)
    assert read.think(none).shape == (0, N_AHEAD - 2)
    said = read.after(none, torch.zeros(0, 4, dtype=torch.long), 2)
    assert said.weight.shape == (0, 2)
    assert said.mixed.shape == (0, 2, 32)


def test_bad_texts() -> None:
    model = tiny_model("gpt2", n_ahead=N_AHEAD)
    with pytest.raises(SettingsError, match=r"at least one"):
        Reading(model, torch.zeros(0, dtype=torch.long))
    with pytest.raises(SettingsError, match="learned 128 positions; give at most 122"):
        Reading(model, torch.zeros(123, dtype=torch.long))
    read = Reading(model, torch.zeros(122, dtype=torch.long))
    with pytest.raises(SettingsError, match="learned 128 positions"):
        read.after(torch.tensor([121]), torch.zeros(1, 9, dtype=torch.long))
