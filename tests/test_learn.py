"""Losses and rewards against numbers made by hand, and REINFORCE against the exact expectation."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar import QuietStarForCausalLM, QuietStarOutput, learn
from quietstar.learn import IGNORED, Counts, Labels
from tests.tiny import random_thoughts, texts, tiny_model


def look_ahead(labels: Tensor, is_column: Tensor, n_ahead_talk: int, mask: Tensor | None = None) -> Labels:
    return Labels.look_ahead(labels=labels, is_column=is_column, n_ahead_talk=n_ahead_talk, attention_mask=mask)


def everywhere(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


# ---------------------------------------------------------------------- labels


def test_labels_look_ahead_over_holes_and_past_the_end() -> None:
    row = torch.tensor([[5, 6, IGNORED, 7]])
    labels = look_ahead(row, everywhere(row), 2)
    assert labels.ahead.tolist() == [[[6, -100], [-100, 7], [7, -100], [-100, -100]]]
    assert labels.base.tolist() == [[True, False, True, False]]
    assert labels.talk.tolist() == [[[True, False], [False, True], [True, False], [False, False]]]
    assert not labels.complete.any()
    counts = labels.count()
    assert (int(counts.base), counts.talk.tolist(), int(counts.complete)) == (2, [2, 1], 0)


def test_only_columns_have_labels_after_a_thought() -> None:
    row = torch.tensor([[5, 6, 7, 8]])
    labels = look_ahead(row, torch.tensor([[False, True, False, False]]), 2)
    assert labels.talk.sum((0, 1)).tolist() == [1, 1]
    assert labels.complete.tolist() == [[False, True, False, False]]
    assert labels.base.tolist() == [[True, True, True, False]], "the base pass predicts everywhere"


def test_padding_in_front_of_a_text_predicts_nothing() -> None:
    """Not the text's first token, nor one further on; a masked token inside the text predicts what follows it."""
    row = torch.tensor([[IGNORED, IGNORED, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 0, 1]])
    labels = look_ahead(row, everywhere(row), 3, mask)
    nothing = [IGNORED] * 3
    assert labels.ahead.tolist() == [[nothing, nothing, [6, 7, -100], [7, -100, -100], nothing]]


@st.composite
def examples(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int, int]:
    """labels and is_column [B, S], P, M, K: labels missing anywhere, rows without any, S shorter than M."""
    B, S = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    entries = st.lists(st.sampled_from([IGNORED, 0, 1, 2]), min_size=S, max_size=S)
    chosen = st.lists(st.booleans(), min_size=S, max_size=S)
    labels = torch.tensor(draw(st.lists(entries, min_size=B, max_size=B)))
    is_column = torch.tensor(draw(st.lists(chosen, min_size=B, max_size=B)))
    return labels, is_column, draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 2))


def values_like(labels: Labels, P: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """base_nll, talk_nll and thought_logprob; junk where there is no label must not matter."""
    B, S, M = labels.ahead.shape
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(B, S, generator=generator),
        torch.rand(B, P, S, M, generator=generator),
        -torch.rand(B, P, S, K, generator=generator),
    )


def nll_of(base_nll: Tensor, talk_nll: Tensor, labels: Labels, counts: learn.Counts, base_loss_weight: float) -> Tensor:
    P = talk_nll.shape[1]
    return learn.nll_loss(base_nll, talk_nll, learn.nll_weights(labels, counts, P, base_loss_weight))


def policy_of(advantage: Tensor, logprob: Tensor, labels: Labels, counts: learn.Counts) -> Tensor:
    return learn.policy_loss(logprob, learn.thought_weights(advantage, labels, counts, logprob.shape[-1]))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@given(examples())
def test_losses_are_means_over_real_labels(example: tuple[Tensor, Tensor, int, int, int]) -> None:
    """Counted out entry by entry, as method.md writes it."""
    row, is_column, P, M, K = example
    labels = look_ahead(row, is_column, M)
    base_nll, talk_nll, logprob = values_like(labels, P, K)
    B, S = row.shape

    def has_label(b: int, i: int) -> bool:
        return i < S and int(row[b, i]) != IGNORED

    places = [(b, p, i) for b in range(B) for p in range(P) for i in range(S) if is_column[b, i]]
    rewards = torch.zeros(B, P, S)
    for b, p, i in places:
        rewards[b, p, i] = sum(
            float(base_nll[b, i + k] - talk_nll[b, p, i, k]) for k in range(M) if has_label(b, i + 1 + k)
        )
    torch.testing.assert_close(learn.reward(base_nll, talk_nll, labels), rewards)

    base = mean([float(base_nll[b, i]) for b in range(B) for i in range(S) if has_label(b, i + 1)])
    talk = [mean([float(talk_nll[b, p, i, k]) for b, p, i in places if has_label(b, i + 1 + k)]) for k in range(M)]
    nll = nll_of(base_nll, talk_nll, labels, labels.count(), base_loss_weight=0.3)
    assert float(nll) == pytest.approx(0.3 * base + 0.7 / M * sum(talk), abs=1e-5)

    advantage = learn.advantage(rewards)
    terms = [
        -float(advantage[b, p, i] * logprob[b, p, i, j])
        for b, p, i in places
        if all(has_label(b, i + 1 + k) for k in range(M))
        for j in range(K)
    ]
    policy = policy_of(advantage, logprob, labels, labels.count())
    assert float(policy) == pytest.approx(mean(terms), abs=1e-5)


@given(examples(), st.data())
def test_losses_of_parts_add_up_to_the_whole(
    example: tuple[Tensor, Tensor, int, int, int], data: st.DataObject
) -> None:
    row, is_column, P, M, K = example
    whole = look_ahead(row, is_column, M)
    base_nll, talk_nll, logprob = values_like(whole, P, K)
    advantage = learn.advantage(learn.reward(base_nll, talk_nll, whole))
    cut = data.draw(st.integers(0, len(row)))
    parts = [slice(0, cut), slice(cut, len(row))]
    labels = [look_ahead(row[part], is_column[part], M) for part in parts]
    counts = labels[0].count() + labels[1].count()
    for name in ("base", "talk", "complete"):
        assert torch.equal(getattr(counts, name), getattr(whole.count(), name))
    nll = sum(nll_of(base_nll[part], talk_nll[part], own, counts, 0.5) for part, own in zip(parts, labels, strict=True))
    policy = sum(
        policy_of(advantage[part], logprob[part], own, counts) for part, own in zip(parts, labels, strict=True)
    )
    torch.testing.assert_close(nll, nll_of(base_nll, talk_nll, whole, whole.count(), 0.5))
    torch.testing.assert_close(policy, policy_of(advantage, logprob, whole, whole.count()))


# ---------------------------------------------------------------------- by hand


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


def test_rewards_are_float32_and_without_gradient() -> None:
    row = torch.ones(1, 3, dtype=torch.long)
    labels = look_ahead(row, everywhere(row), 1)
    base_nll = torch.rand(1, 3, dtype=torch.bfloat16, requires_grad=True)
    talk_nll = torch.rand(1, 2, 3, 1, dtype=torch.bfloat16, requires_grad=True)
    reward = learn.reward(base_nll, talk_nll, labels)
    assert reward.dtype == torch.float32
    assert not reward.requires_grad
    assert not learn.advantage(reward).requires_grad


def test_losses_by_hand() -> None:
    row = torch.tensor([[1, 1, 1]])
    labels = look_ahead(row, everywhere(row), 2)
    base_nll = torch.tensor([[1.0, 3.0, 99.0]])
    talk_nll = torch.tensor([[[[1.0, 7.0], [2.0, 99.0], [99.0, 99.0]], [[3.0, 9.0], [4.0, 99.0], [99.0, 99.0]]]])
    nll = nll_of(base_nll, talk_nll, labels, labels.count(), base_loss_weight=0.5)
    assert float(nll) == 0.5 * 2 + 0.5 / 2 * (2.5 + 8)
    advantage = torch.tensor([[[2.0, 99.0, 99.0], [0.0, 99.0, 99.0]]])  # only column 0 has both its labels
    logprob = torch.tensor([[[[-1.0, -3.0]] * 3, [[-5.0, -7.0]] * 3]])
    policy = policy_of(advantage, logprob, labels, labels.count())
    assert float(policy) == -(2 * -1 + 2 * -3) / 4


def test_nothing_to_learn_is_a_loss_of_zero() -> None:
    row = torch.full((2, 3), IGNORED)
    labels = look_ahead(row, everywhere(row), 2)
    base_nll, talk_nll, logprob = values_like(labels, P=2, K=2)
    assert nll_of(base_nll, talk_nll, labels, labels.count(), 0.5) == 0
    reward = learn.reward(base_nll, talk_nll, labels)
    assert policy_of(learn.advantage(reward), logprob, labels, labels.count()) == 0
    assert policy_of(learn.advantage(reward), logprob[..., :0], labels, labels.count()) == 0


# ---------------------------------------------------------------------- in the model


@pytest.mark.parametrize(("policy_weight", "loss_only"), [(1.0, False), ("balanced:0.5", True)])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
def test_batches_that_share_their_counts_add_up(
    checkpointing: bool, policy_weight: float | str, loss_only: bool
) -> None:
    """Loss and gradients of one batch of four rows are the sums of those of two batches, unequal in labels."""
    model = tiny_model(n_ahead=4, n_ahead_talk=3, n_passes=2, policy_weight=policy_weight).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = texts(9, 4, 2, 7)
    inputs["labels"][0, 3:5] = IGNORED
    inputs["labels"][3] = IGNORED
    inputs["thoughts"] = random_thoughts(model, 4, 9, P=2)
    parameters = list(model.parameters())

    def run(part: slice, counts: Counts | None = None) -> tuple[Tensor, list[Tensor]]:
        batch = {name: value[part] for name, value in inputs.items()}
        loss = model(**batch, counts=counts, loss_only=loss_only).loss
        return loss.detach(), torch.autograd.grad(loss, parameters)

    def count(part: slice) -> Counts:
        mask = inputs["attention_mask"][part]
        return look_ahead(inputs["labels"][part], mask.bool(), 3, mask).count()

    counts = count(slice(0, 1)) + count(slice(1, 4))
    whole, gradients = run(slice(0, 4))
    first, second = run(slice(0, 1), counts), run(slice(1, 4), counts)
    torch.testing.assert_close(first[0] + second[0], whole)
    for one, other, expected in zip(first[1], second[1], gradients, strict=True):
        torch.testing.assert_close(one + other, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("S", [1, 2, 3])
def test_texts_shorter_than_the_talk(S: int) -> None:
    """Predictions past the end have no label; no column has all of its own."""
    model = tiny_model(n_ahead=4, n_ahead_talk=4, n_passes=2).train()
    output = model(**texts(S))
    assert output.talk_nll.shape == (1, 2, S, 4)
    has_label = torch.tensor([[i + 1 + k < S for k in range(4)] for i in range(S)])
    assert torch.equal(output.talk_nll[0, 0] != 0, has_label)
    assert output.policy_loss == 0
    assert torch.isfinite(output.loss)
    if S > 1:
        output.loss.backward()


def policy_gradients(model: QuietStarForCausalLM, output: QuietStarOutput) -> dict[str, Tensor | None]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(output.policy_loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
def test_where_the_policy_term_reaches(checkpointing: bool) -> None:
    """The whole base model, the start embedding and the rows of tokens; neither mixing head nor end embedding."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}
    thoughts = torch.tensor([[[[20, 21]] * 4, [[30, 31]] * 4]])
    output = model(**inputs, thoughts=thoughts)
    gradients = policy_gradients(model, output)
    for name, gradient in gradients.items():
        reached = gradient is not None and bool((gradient != 0).any())
        outside = name.startswith("mixing_head") or name == "thought_embeddings.end_embedding"
        assert reached != outside, name
    rows = gradients["base_lm.model.embed_tokens.weight"].abs().amax(1)
    chosen = output.advantage[0, :, :2].amax(1) > 0  # passes that have an advantage somewhere
    assert chosen.any()
    for p, first in enumerate((20, 30)):
        # the first token of a thought is read where the second is drawn; the last is read by nobody
        assert bool(rows[first] > 0) == bool(chosen[p])
        assert rows[first + 1] == 0
    assert (rows[[5, 6]] > 0).any()
    assert (rows[[7, 8, 40]] == 0).all(), "columns 0 and 1 alone have all their labels"


def test_no_gradient_passes_through_the_advantage() -> None:
    """Twice the advantage is twice the gradient: it is a number."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2)
    inputs = texts(5)
    output = model(**inputs, thoughts=random_thoughts(model, 1, 5, P=2))
    assert not output.reward.requires_grad
    assert not output.advantage.requires_grad
    assert output.thought_logprob.requires_grad


# ---------------------------------------------------------------------- REINFORCE


@pytest.mark.parametrize(("temperature", "sharpens"), [(1.0, False), (3.0, True)])
def test_rewards_that_say_nothing_teach_nothing_at_the_temperature_of_sampling(
    temperature: float, sharpens: bool
) -> None:
    """The exact expectation, where every thought has the same advantage. Scored at a higher temperature than it was
    sampled at, a thought is reinforced for being likely: entropy falls."""
    logits = torch.tensor([1.0, 0.3, -0.5, 2.0], requires_grad=True)
    p = logits.detach().softmax(-1)
    loss = -(p * (logits / temperature).log_softmax(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    after = (logits.detach() - 0.1 * gradient).softmax(-1)
    entropy, entropy_after = (-(of * of.log()).sum() for of in (p, after))
    assert bool(gradient.abs().max() > 0.01) == sharpens
    assert bool(entropy_after < entropy - 1e-3) == sharpens


V = 3
ROW = torch.tensor([[0, 2, 1, 2]])


def three_token_model(n_ahead: int, n_passes: int, thought_temperature: float = 1.0) -> QuietStarForCausalLM:
    """Sampling and policy term at temperature 1: what is sampled is what is scored."""
    return tiny_model(
        base={"vocab_size": V, "pad_token_id": None},
        n_ahead=n_ahead,
        n_ahead_talk=2,
        n_passes=n_passes,
        reinforce_temperature=1.0,
        thought_temperature=thought_temperature,
    ).train()


def watched(model: QuietStarForCausalLM) -> list[Tensor]:
    base = model.base_lm
    return [
        model.thought_embeddings.start_embedding,
        base.lm_head.weight,
        base.model.layers[0].self_attn.q_proj.weight,
        base.model.layers[1].mlp.down_proj.weight,
        base.model.embed_tokens.weight,
    ]


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def expected_gradient(model: QuietStarForCausalLM) -> Tensor:
    """Of the policy loss over every combination of P thoughts, each weighted by its exact probability."""
    K, P = model.config.n_thought_tokens, model.config.n_passes
    combinations = torch.tensor(list(product(range(V), repeat=K * P))).reshape(-1, P, 1, K)
    n, S = len(combinations), ROW.shape[1]
    rows = ROW.expand(n, -1)
    output = model(rows, labels=rows, thoughts=combinations.expand(-1, -1, S, -1).contiguous())
    columns = slice(0, S - 2)  # those with both their labels
    logprob = output.thought_logprob[:, :, columns]
    probability = logprob.detach().sum((1, 3)).exp()  # [n, columns]
    torch.testing.assert_close(probability.sum(0), torch.ones(S - 2), rtol=1e-4, atol=1e-4)
    loss = -(output.advantage[:, :, columns, None] * logprob).mean((1, 3))
    expected = (probability * loss).sum(0).mean()
    return flat(torch.autograd.grad(expected, watched(model)))


def sampled_gradients(model: QuietStarForCausalLM, n_batches: int, batch_size: int) -> Tensor:
    """[n_batches, parameters] of batches of equal rows, thoughts drawn by the model itself."""
    torch.manual_seed(0)
    rows = ROW.expand(batch_size, -1)
    found = []
    for _ in range(n_batches):
        loss = model(rows, labels=rows).policy_loss
        found.append(flat(torch.autograd.grad(loss, watched(model))))
    return torch.stack(found)


def worst_deviation(expected: Tensor, sampled: Tensor) -> float:
    """In standard errors of the mean; parameters that no thought moves must not move."""
    error = sampled.std(0) / len(sampled) ** 0.5
    floor = 1e-4 * float(expected.abs().max())
    return float(((sampled.mean(0) - expected).abs() / (error + floor)).max())


@pytest.mark.parametrize(("n_ahead", "n_passes"), [(3, 1), (4, 2)])
def test_sampled_policy_gradients_average_to_the_exact_one(n_ahead: int, n_passes: int) -> None:
    model = three_token_model(n_ahead, n_passes)
    expected = expected_gradient(model)
    sampled = sampled_gradients(model, n_batches=30, batch_size=100)
    error = sampled.std(0).norm() / len(sampled) ** 0.5
    assert expected.norm() > 10 * error, "too few draws to tell anything"
    assert worst_deviation(expected, sampled) < 6


def test_that_average_notices_another_sampling_temperature() -> None:
    expected = expected_gradient(three_token_model(3, 2))
    sampled = sampled_gradients(three_token_model(3, 2, thought_temperature=3.0), n_batches=30, batch_size=100)
    assert worst_deviation(expected, sampled) > 10
