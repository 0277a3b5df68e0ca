"""Step 3, learn: losses and rewards from predictions (arXiv 2403.09629, section 4.4). Pure functions.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each thought, K sampled tokens
of a thought. Sums and their denominators count the same entries, those with a label.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quietstar.errors import SettingsError, shown

IGNORED = -100
"""label of a token that is not predicted"""


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
        """Return the labels that each column predicts, from labels in the usual place (label i belongs to token i).

        Padding in front of a text predicts nothing, not even its first token, so that a row padded on the left has the
        same losses as without padding.

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
    def complete(self) -> Tensor:
        """[B, S]: columns with all their labels."""
        return self.talk.all(dim=-1)

    def count(self) -> "Counts":
        """Return the number of labels of each kind."""
        return Counts(base=self.base.sum(), talk=self.talk.sum((0, 1)), complete=self.complete.sum())


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of the means; those of several batches or ranks are added.

    `talk` and `complete` count one thought of each position, whatever P is.
    """

    base: Tensor
    """[]: labels of the base pass."""
    talk: Tensor
    """[M]: labels at each k."""
    complete: Tensor
    """[]: columns with all their labels."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(base=self.base + other.base, talk=self.talk + other.talk, complete=self.complete + other.complete)


def reward(base_nll: Tensor, talk_nll: Tensor, labels: Labels) -> Tensor:
    """Return [B, P, S]: how much likelier each thought made the true tokens after it, in nats; no gradient.

    reward[b, p, i] = sum over k of base_nll[b, i+k] - talk_nll[b, p, i, k], over real labels.

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
    """Return [B, P, S]: reward minus the mean reward of a position's P thoughts (0 if P is 1), clipped at 0."""
    baseline = reward.mean(1, keepdim=True) if reward.shape[1] > 1 else 0
    return (reward - baseline).clamp(min=0)


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


def thought_weights(advantage: Tensor, labels: Labels, counts: Counts, n_tokens: int) -> Tensor:
    """Return [B, P, S]: the weight of each sampled token of a thought, for `policy_loss`.

    REINFORCE: the loss is minus the mean over sampled tokens of advantage x thought_logprob, at columns with all their
    labels.

    Args:
        advantage: [B, P, S]
        labels: which columns count.
        counts: number of labels in the whole optimizer step.
        n_tokens: K, sampled tokens of a thought.
    """
    P = advantage.shape[1]
    return advantage * labels.complete[:, None] / (P * max(n_tokens, 1) * counts.complete.clamp(min=1))


@dataclass(frozen=True, slots=True)
class PolicyWeight:
    """Weight of the policy loss beside the nll: a number, or `balanced:R`.

    `balanced:R` gives each row the weight at which the policy term's gradient at the row's hidden states has R times
    the norm of the nll's. Each row is balanced by itself, so that the weights do not depend on which rows share a
    batch, an accumulated step or a process.
    """

    value: float
    """the weight, or R"""
    is_balanced: bool = False

    @classmethod
    def parse(cls, setting: float | str) -> "PolicyWeight":
        """Parse a number of at least 0, or a string such as "30" or "balanced:0.1".

        Raises:
            SettingsError: the setting is neither.
        """
        kind, _, ratio = setting.partition(":") if isinstance(setting, str) else ("", "", "")
        is_balanced = kind == "balanced"
        try:
            value = float(ratio if is_balanced else setting)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if isinstance(setting, bool) or not 0 <= value < math.inf:
            raise SettingsError(
                f"policy_weight is {shown(setting)}; give a number of at least 0, or balanced:R, such as balanced:0.1, "
                "for a gradient R times as long as the nll's"
            )
        return cls(value, is_balanced)

    @property
    def setting(self) -> float | str:
        """The setting in a config, which `parse` reads."""
        return f"balanced:{self.value!r}" if self.is_balanced else self.value

    def balance(self, nll_gradient: Tensor, policy_gradient: Tensor) -> Tensor:
        """Return [B]: weights of rows that give the policy term's gradient R times the norm of the nll's.

        Args:
            nll_gradient: [B] squared norm of the nll's gradient at each row's hidden states.
            policy_gradient: [B] the same of the policy loss, at weight 1.
        """
        weights = self.value * (nll_gradient / policy_gradient).sqrt()
        return torch.where(policy_gradient > 0, weights, 0.0).clamp(max=HIGHEST_BALANCED_WEIGHT)


HIGHEST_BALANCED_WEIGHT = 1e4
"""Upper bound of a balanced weight: while the mixing head opens, rewards hardly differ, and an unbounded weight would
scale them up to a gradient of full norm."""


def nll_loss(base_nll: Tensor, talk_nll: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Return the nll [] of base_nll [B, S] and talk_nll [B, P, S, M], weighted by `nll_weights`."""
    base, talk = weights
    return (base_nll * base).sum() + (talk_nll * talk[:, None]).sum()


def policy_loss(thought_logprob: Tensor, weights: Tensor) -> Tensor:
    """Return the policy loss [] of thought_logprob [B, P, S, K], weighted by `thought_weights`; 0 if K is 0."""
    return -(thought_logprob * weights[..., None]).sum()
