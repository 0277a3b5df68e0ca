"""REINFORCE against the exact expectation, over every thought of a vocabulary of three tokens."""

from itertools import product

import pytest
import torch
from torch import Tensor

from quietstar import QuietStarForCausalLM, learn
from tests.tiny import tiny_model


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
BASE = {"vocab_size": V, "pad_token_id": None}
ROW = torch.tensor([[0, 2, 1, 2]])


def three_token_model(
    n_ahead: int, n_passes: int, thought_temperature: float = 1.0, **settings: object
) -> QuietStarForCausalLM:
    """Sampling and policy term at temperature 1: what is sampled is what is scored."""
    return tiny_model(
        base=BASE,
        n_ahead=n_ahead,
        n_ahead_talk=2,
        n_passes=n_passes,
        reinforce_temperature=1.0,
        thought_temperature=thought_temperature,
        **settings,
    ).train()


def watched(model: QuietStarForCausalLM) -> list[Tensor]:
    base = model.base_lm
    return [
        model.thought_embeddings.start_embedding,
        base.lm_head.weight,
        base.model.layers[0].self_attn.q_proj.weight,
        base.model.layers[1].mlp.down_proj.weight,
        base.model.embed_tokens.weight,
        *([] if model.end_head is None else model.end_head.parameters()),
    ]


def every_thought(model: QuietStarForCausalLM) -> list[tuple[int, ...]]:
    """Of K tokens, and if thoughts may end early, of fewer: with -1 after their last token."""
    K = model.config.n_thought_tokens
    lengths = [K] if model.end_head is None else range(K + 1)
    return [tokens + (-1,) * (K - n) for n in lengths for tokens in product(range(V), repeat=n)]


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def expected_gradient(model: QuietStarForCausalLM) -> Tensor:
    """Of the policy loss over every combination of P thoughts, each weighted by its exact probability."""
    K, P = model.config.n_thought_tokens, model.config.n_passes
    combinations = torch.tensor(list(product(every_thought(model), repeat=P))).reshape(-1, P, 1, K)
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


def true_gradient(model: QuietStarForCausalLM) -> Tensor:
    """Of minus the expected reward of a thought, divided by its tokens as the policy loss is; rewards are numbers."""
    K = model.config.n_thought_tokens
    thoughts = torch.tensor(every_thought(model)).reshape(-1, 1, 1, K)
    n, S = len(thoughts), ROW.shape[1]
    rows = ROW.expand(n, -1)
    output = model(rows, labels=rows, thoughts=thoughts.expand(-1, -1, S, -1).contiguous())
    columns = slice(0, S - 2)
    probability = output.thought_logprob[:, 0, columns].sum(-1).exp()  # [n, columns]
    loss = -(probability * output.reward[:, 0, columns]).sum(0).mean() / K
    return flat(torch.autograd.grad(loss, watched(model)))


@pytest.mark.parametrize(
    ("n_ahead", "n_passes", "settings"),
    [(3, 2, {}), (4, 2, {}), (3, 3, {}), (4, 2, {"learn_to_end": True, "length_price": 0.7})],
)
def test_the_policy_gradient_is_that_of_the_expected_reward(n_ahead: int, n_passes: int, settings: dict) -> None:
    """Leave-one-out exactly, centered (P - 1) / P of it; the paper's advantage points elsewhere."""
    model = three_token_model(n_ahead, n_passes, **settings)
    true, found = true_gradient(model), {}
    for kind in learn.ADVANTAGES:
        model.config.advantage = kind
        found[kind] = expected_gradient(model)
    error = 1e-3 * float(true.norm())
    assert (found["leave_one_out"] - true).norm() < error
    assert (found["centered"] - (n_passes - 1) / n_passes * true).norm() < error
    for kind in ("positive", "standardized"):
        along = found[kind] @ true / true.norm() ** 2
        across = (found[kind] - along * true).norm() / found[kind].norm()
        assert across > 0.05, f"{kind} is biased"


@pytest.mark.parametrize("n_ahead", [3, 4])
def test_the_kl_terms_gradient_is_that_of_the_divergence(n_ahead: int) -> None:
    """Of each token from the reference's, given the tokens before it, which are sampled as they are."""
    model, reference = three_token_model(n_ahead, 1), tiny_model(base=BASE, n_ahead=n_ahead, n_ahead_talk=2, seed=3)
    reference.config.reinforce_temperature = 1.0
    K, S = model.config.n_thought_tokens, ROW.shape[1]
    thoughts = torch.tensor(list(product(range(V), repeat=K))).reshape(-1, 1, 1, K).expand(-1, -1, S, -1).contiguous()
    rows = ROW.expand(len(thoughts), -1)
    with torch.no_grad():
        theirs = reference(rows, labels=rows, thoughts=thoughts).thought_logprob
    rollout = learn.Rollout(
        advantage=torch.zeros(len(thoughts), 1, S), kl_weight=1.0, reference_logprob=theirs
    )  # no reward: the divergence alone
    output = model(rows, labels=rows, thoughts=thoughts, rollout=rollout)
    own, theirs = (each[:, 0, : S - 2] for each in (output.thought_logprob, theirs))  # [V^K, columns, K]
    probability = own.sum(-1).exp().detach()
    terms = learn.policy_terms(output.thought_logprob, output.advantage, rollout)[:, 0, : S - 2].mean(-1)
    expected = flat(torch.autograd.grad((probability * terms).sum(0).mean(), watched(model), retain_graph=True))
    true = torch.zeros(())
    for j in range(K):  # those that share their first j tokens are one prefix; each of its next tokens comes V^(K-j-1)
        before = own[..., :j].sum(-1).exp().detach()
        divergence = own[..., j].exp() * (own - theirs)[..., j]
        true = true + (before * divergence).sum(0).mean() / V ** (K - j - 1) / K
    found = flat(torch.autograd.grad(true, watched(model)))
    assert found.norm() > 0.01
    assert (expected - found).norm() < 1e-3 * found.norm()


def worst_deviation(expected: Tensor, sampled: Tensor) -> float:
    """In standard errors of the mean; parameters that no thought moves must not move."""
    error = sampled.std(0) / len(sampled) ** 0.5
    floor = 1e-4 * float(expected.abs().max())
    return float(((sampled.mean(0) - expected).abs() / (error + floor)).max())


@pytest.mark.parametrize(
    ("n_ahead", "n_passes", "settings"), [(3, 1, {}), (4, 2, {}), (4, 2, {"learn_to_end": True, "length_price": 0.7})]
)
def test_sampled_policy_gradients_average_to_the_exact_one(n_ahead: int, n_passes: int, settings: dict) -> None:
    model = three_token_model(n_ahead, n_passes, **settings)
    expected = expected_gradient(model)
    sampled = sampled_gradients(model, n_batches=30, batch_size=100)
    error = sampled.std(0).norm() / len(sampled) ** 0.5
    assert expected.norm() > 10 * error, "too few draws to tell anything"
    assert worst_deviation(expected, sampled) < 6


def test_that_average_notices_another_sampling_temperature() -> None:
    expected = expected_gradient(three_token_model(3, 2))
    sampled = sampled_gradients(three_token_model(3, 2, thought_temperature=3.0), n_batches=30, batch_size=100)
    assert worst_deviation(expected, sampled) > 10
