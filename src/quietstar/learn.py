"""Step 3, learn: losses and rewards from predictions (arXiv 2403.09629, section 4.4). Pure functions.

Legend: B examples, S tokens in a row, P passes, M true tokens after each thought, K sampled tokens of a thought.
`mean` is always over real entries: one mask for numerator and denominator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""label of a token that is not to be predicted"""


@dataclass(frozen=True, slots=True)
class Labels:
    """Which predictions have a label, and which of them count.

    Column i predicts the labels at i+1 .. i+M. A column's reward compares all of them, so it counts towards the
    policy loss only where all M are real.
    """

    ahead: Tensor
    """[B, S, M]: label that column i predicts with k more true tokens known; IGNORED past the end."""
    is_column: Tensor
    """[B, S]: where a branch grows."""

    @classmethod
    def look_ahead(
        cls, labels: Tensor, is_column: Tensor, n_ahead_talk: int, attention_mask: Tensor | None = None
    ) -> "Labels":
        """From labels in the usual place (label i belongs to token i).

        Padding in front of a text predicts nothing, not even its first token: rows padded on the left have the
        losses that they have alone.

        Args:
            labels: [B, S]
            is_column: [B, S], where a branch grows.
            n_ahead_talk: M.
            attention_mask: [B, S], 0 at padding; None for none.
        """
        S = labels.shape[1]
        padded = torch.nn.functional.pad(labels, (0, n_ahead_talk), value=IGNORED)
        ahead = torch.stack([padded[:, 1 + k : 1 + k + S] for k in range(n_ahead_talk)], dim=-1)
        if attention_mask is not None:
            in_front = attention_mask.cumsum(dim=1) == 0
            ahead = ahead.masked_fill(in_front[..., None], IGNORED)
        return cls(ahead=ahead, is_column=is_column)

    @property
    def base(self) -> Tensor:
        """[B, S]: where the base pass has a label."""
        return self.ahead[..., 0] != IGNORED

    @property
    def talk(self) -> Tensor:
        """[B, S, M]: where a prediction after a thought has a label."""
        return (self.ahead != IGNORED) & self.is_column[..., None]

    @property
    def policy(self) -> Tensor:
        """[B, S]: columns with all their labels."""
        return self.talk.all(dim=-1)

    def count(self) -> "Counts":
        """How many labels there are of each kind."""
        return Counts(base=self.base.sum(), talk=self.talk.sum((0, 1)), policy=self.policy.sum())


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of the means, each for one pass. Over several batches, of accumulation or ranks, they add up."""

    base: Tensor
    """[]: labels of the base pass."""
    talk: Tensor
    """[M]: labels at each k."""
    policy: Tensor
    """[]: columns with all their labels."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(base=self.base + other.base, talk=self.talk + other.talk, policy=self.policy + other.policy)


def reward(base_nll: Tensor, talk_nll: Tensor, labels: Labels) -> Tensor:
    """[B, P, S] how much likelier each thought made the true tokens after it, in nats; no gradient.

    reward[b, p, i] = sum over k of base_nll[b, i+k] - talk_nll[b, p, i, k], over the labels that are there.

    Args:
        base_nll: [B, S]
        talk_nll: [B, P, S, M]
        labels: which of them count.
    """
    M, S = talk_nll.shape[-1], base_nll.shape[1]
    padded = torch.nn.functional.pad(base_nll.detach().float(), (0, M))
    base_ahead = torch.stack([padded[:, k : k + S] for k in range(M)], dim=-1)  # [B, S, M]
    gain = base_ahead[:, None] - talk_nll.detach().float()
    return (gain * labels.talk[:, None]).sum(-1)


def advantage(reward: Tensor) -> Tensor:
    """[B, P, S] reward above the mean of a position's P thoughts, never below 0; one thought is compared to 0."""
    baseline = reward.mean(1, keepdim=True) if reward.shape[1] > 1 else 0
    return (reward - baseline).clamp(min=0)


def nll_loss(base_nll: Tensor, talk_nll: Tensor, labels: Labels, counts: Counts, base_loss_weight: float) -> Tensor:
    """[] base_loss_weight x mean(base_nll) + (1 - base_loss_weight) / M x sum over k of mean(talk_nll at k).

    Args:
        base_nll: [B, S], counted wherever it has a label.
        talk_nll: [B, P, S, M], counted at columns.
        labels: which entries count.
        counts: how many there are in the whole optimizer step.
        base_loss_weight: share of the first term.
    """
    P, M = talk_nll.shape[1], talk_nll.shape[-1]
    base = (base_nll * labels.base).sum() / counts.base.clamp(min=1)
    talk = (talk_nll * labels.talk[:, None]).sum((0, 1, 2)) / (P * counts.talk.clamp(min=1))
    return base_loss_weight * base + (1 - base_loss_weight) / M * talk.sum()


def policy_loss(advantage: Tensor, thought_logprob: Tensor, labels: Labels, counts: Counts) -> Tensor:
    """[] REINFORCE: mean over sampled tokens of - advantage x thought_logprob, at columns with all their labels.

    Args:
        advantage: [B, P, S]
        thought_logprob: [B, P, S, K]; the loss is 0 where K is 0.
        labels: which columns count.
        counts: how many there are in the whole optimizer step.
    """
    P, K = thought_logprob.shape[1], thought_logprob.shape[-1]
    if K == 0:
        return advantage.new_zeros(())
    weight = advantage * labels.policy[:, None]
    return -(weight[..., None] * thought_logprob).sum() / (P * K * counts.policy.clamp(min=1))
