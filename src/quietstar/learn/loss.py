"""The losses: means over the labels of a whole optimizer step.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each thought, K sampled tokens
of a thought. Sums and their denominators count the same entries, those with a label.
"""

import torch
from torch import Tensor

from quietstar.learn.labels import Counts, Labels
from quietstar.learn.rollout import NO_ROLLOUT, Rollout


def nll_weights(labels: Labels, counts: Counts, n_passes: int, base_loss_weight: float) -> tuple[Tensor, Tensor]:
    """Return [B, S] and [B, S, M]: the weights of each base_nll, and of each pass's talk_nll, in nll.

    nll = base_loss_weight x mean(base_nll) + (1 - base_loss_weight) / M x sum over k of mean(talk_nll at k)

    Args:
        labels: which entries count: base_nll wherever it has a label, talk_nll at columns.
        counts: number of labels in the whole optimizer step.
        n_passes: P.
        base_loss_weight: share of the first term.
    """
    M = labels.ahead.shape[-1]
    base = base_loss_weight * labels.base / counts.base.clamp(min=1)
    talk = (1 - base_loss_weight) / M * labels.talk / (n_passes * counts.talk.clamp(min=1))
    return base, talk


def nll_loss(base_nll: Tensor, talk_nll: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Return the nll [] of base_nll [B, S] and talk_nll [B, P, S, M], weighted by `nll_weights`."""
    base, talk = weights
    return (base_nll * base).sum() + (talk_nll * talk[:, None]).sum()


def thought_shares(labels: Labels, counts: Counts, n_passes: int, n_tokens: int) -> Tensor:
    """Return [B, 1, S]: the share of each sampled token's term in the policy loss.

    The policy loss is the mean over sampled tokens, at columns with all their labels.

    Args:
        labels: which columns count.
        counts: number of labels in the whole optimizer step.
        n_passes: P.
        n_tokens: K, sampled tokens of a thought.
    """
    return labels.complete[:, None] / (n_passes * max(n_tokens, 1) * counts.complete.clamp(min=1))


def policy_terms(thought_logprob: Tensor, advantage: Tensor, rollout: Rollout = NO_ROLLOUT) -> Tensor:
    """Return [B, P, S, K]: each sampled token's term of the policy loss.

    REINFORCE:                  - advantage x logprob
    after a first policy epoch: - min(ratio x advantage, clip(ratio) x advantage), ratio = exp(logprob - logprob then)
    with a kl_weight:           + kl_weight x 1/2 (logprob - reference's)^2, whose gradient has, over tokens that are
                                sampled from the model, the KL divergence's for its mean; see docs/method.md

    Args:
        thought_logprob: [B, P, S, K]
        advantage: [B, P, S], no gradient.
        rollout: of these thoughts.
    """
    by_token = advantage[..., None]
    if rollout.logprob is None:
        terms = -by_token * thought_logprob
    else:
        ratio = (thought_logprob - rollout.logprob).exp()
        terms = -by_token * ratio
        if rollout.clip_ratio is not None:
            terms = terms.maximum(-by_token * ratio.clamp(1 - rollout.clip_ratio, 1 + rollout.clip_ratio))
    if rollout.kl_weight:
        assert rollout.reference_logprob is not None
        terms = terms + rollout.kl_weight * 0.5 * (thought_logprob - rollout.reference_logprob).square()
    return terms


def policy_loss(thought_logprob: Tensor, advantage: Tensor, shares: Tensor, rollout: Rollout = NO_ROLLOUT) -> Tensor:
    """Return the policy loss []: the sum of `policy_terms` by their `thought_shares` [B, 1, S]; 0 if K is 0."""
    return (policy_terms(thought_logprob, advantage, rollout) * shares[..., None]).sum()


def token_weights(thought_logprob: Tensor, advantage: Tensor, shares: Tensor, rollout: Rollout = NO_ROLLOUT) -> Tensor:
    """Return [B, P, S, K]: minus the derivative of `policy_loss` by each token's log-probability."""
    with torch.enable_grad():
        leaf = thought_logprob.detach().requires_grad_()
        return -torch.autograd.grad(policy_loss(leaf, advantage, shares, rollout), leaf)[0]
