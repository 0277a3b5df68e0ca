"""The losses: means over the labels of a whole optimizer step.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each thought, K sampled tokens
of a thought. Sums and their denominators count the same entries, those with a label.
"""

from torch import Tensor

from quietstar.learn.labels import Counts, Labels


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


def nll_loss(base_nll: Tensor, talk_nll: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Return the nll [] of base_nll [B, S] and talk_nll [B, P, S, M], weighted by `nll_weights`."""
    base, talk = weights
    return (base_nll * base).sum() + (talk_nll * talk[:, None]).sum()


def policy_loss(thought_logprob: Tensor, weights: Tensor) -> Tensor:
    """Return the policy loss [] of thought_logprob [B, P, S, K], weighted by `thought_weights`; 0 if K is 0."""
    return -(thought_logprob * weights[..., None]).sum()
