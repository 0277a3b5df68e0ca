"""Sums over batches, for the figures that are logged.

A figure is a mean over all labels since the last line, not a mean of means.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quietstar.learn import NO_ROLLOUT, Counts, Labels, Rollout, policy_terms
from quietstar.model import QuietStarOutput
from quietstar.output import ENDED
from quietstar.runs.processes import Processes

EQUAL = 1e-5
"""nats: rewards of one position that differ by less are equal but for rounding"""


def labels_of(inputs: dict[str, Tensor], n_ahead_talk: int) -> Labels:
    """Return which predictions of a batch have a label; its columns are think_at, or all positions without it."""
    labels = inputs["labels"]
    think_at = inputs.get("think_at")
    is_column = torch.ones_like(labels, dtype=torch.bool) if think_at is None else think_at.bool()
    return Labels.look_ahead(labels, is_column, n_ahead_talk, inputs.get("attention_mask"))


def count_labels(batches: list[dict[str, Tensor]], n_ahead_talk: int, processes: Processes) -> Counts:
    """Return how many labels of each kind the batches of a step have, on all processes together."""
    first, *more = (labels_of(batch, n_ahead_talk).count() for batch in batches)
    counts = sum(more, first)
    flat = torch.cat([counts.base[None], counts.complete[None], counts.talk]).to(processes.device)
    flat = processes.gather(flat).sum(0)
    return Counts(base=flat[0], complete=flat[1], talk=flat[2:])


class Tally:
    """Sums of what forward returns; `figures` turns them into the means that method.md names."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self.sums)

    def add_batch(self, output: QuietStarOutput, inputs: dict[str, Any]) -> Labels:
        """Add what forward returned for the inputs of a batch, and return which of its predictions have a label."""
        labels = labels_of(inputs, output.talk_nll.shape[-1])
        mask = inputs.get("attention_mask")
        n_tokens = torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
        self.add(output, labels, n_tokens, inputs.get("rollout", NO_ROLLOUT))
        return labels

    @torch.no_grad()
    def add(self, output: QuietStarOutput, labels: Labels, n_tokens: Tensor, rollout: Rollout = NO_ROLLOUT) -> None:
        """Add a batch.

        Args:
            output: of a forward pass with labels.
            labels: which of its entries count.
            n_tokens: [] tokens of text in the batch, padding excluded.
            rollout: what the forward pass was given.
        """
        _, P, _, K = output.thought_logprob.shape
        base, talk, complete = labels.base, labels.talk[:, None], labels.complete[:, None]
        terms = policy_terms(output.thought_logprob, output.advantage, rollout) * complete[..., None]
        reward = output.reward * complete
        spread = output.reward.amax(1) - output.reward.amin(1)
        new = {
            "tokens": n_tokens,
            "base_nll": (output.base_nll * base).sum(),
            "base_count": base.sum(),
            "base_nll_at_columns": P * (output.base_nll * labels.talk[..., 0]).sum(),
            "talk_nll": (output.talk_nll * talk).sum((0, 1, 2)),  # [M]
            "talk_count": P * labels.talk.sum((0, 1)),  # [M]
            "policy_loss": terms.sum(),
            "policy_count": P * K * complete.sum(),
            "reward": reward.sum(),
            "reward_squared": reward.square().sum(),
            "equal_rewards": ((spread < EQUAL) & labels.complete).sum(),
            "helped": ((output.reward > 0) & complete).sum(),
            "complete_count": labels.complete.sum(),
            "reward_count": P * complete.sum(),
            "weight": (output.mixing_weight * talk).sum(),
            "weight_squared": (output.mixing_weight.square() * talk).sum(),
            **_of_thoughts(output, labels),
        }
        if output.nll_gradient is not None:
            new |= {"nll_gradient": output.nll_gradient, "policy_gradient": output.policy_gradient}
        for name, value in new.items():
            value = value.double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def figures(
        self, base_loss_weight: float, gather: Callable[[Tensor], Tensor] = lambda sums: sums[None]
    ) -> dict[str, float]:
        """Return means over everything added.

        Args:
            base_loss_weight: share of base_nll in nll.
            gather: [n] -> [ranks, n], the sums of all ranks.

        Returns:
            nll and base_nll; and if there were thoughts, talk_nll_k for each k, thought_gain (how much lower
            talk_nll_0 is than base_nll at the same positions), policy_loss, reward_mean,
            reward_std, thought_helped (share of positions with a reward above 0), equal_rewards (share of positions
            whose thoughts, if there are several, all have one reward), mixing_weight, its root mean square and its
            standard deviation, distinct_thoughts (share of a batch's thoughts that differ from all before them),
            thought_length (tokens of a thought, start and end excluded); of sampled thoughts thought_entropy (in nats a
            token, estimated from the tokens drawn); and of a training step policy_share (norm of the policy term's
            gradient at the hidden states, as a share of the sum of this norm and the nll's, if that has one).
        """
        names = list(self.sums)
        sizes = [self.sums[name].numel() for name in names]
        flat = torch.cat([self.sums[name].reshape(-1) for name in names])
        total = dict(zip(names, gather(flat).sum(0).cpu().split(sizes), strict=True))
        base_nll = _ratio(total["base_nll"], total["base_count"])
        if not total["talk_count"].any():
            return {"nll": base_nll, "base_nll": base_nll}
        talk_nll = [_ratio(total["talk_nll"][k], n) for k, n in enumerate(total["talk_count"])]
        n = total["reward_count"]
        mean = _ratio(total["reward"], n)
        variance = max(0.0, _ratio(total["reward_squared"], n) - mean**2)
        weight, weight_squared = (_ratio(total[of], total["talk_count"].sum()) for of in ("weight", "weight_squared"))
        return {
            "nll": base_loss_weight * base_nll + (1 - base_loss_weight) * sum(talk_nll) / len(talk_nll),
            "base_nll": base_nll,
            **{f"talk_nll_{k}": value for k, value in enumerate(talk_nll)},
            "thought_gain": _ratio(total["base_nll_at_columns"], total["talk_count"][0]) - talk_nll[0],
            "policy_loss": _ratio(total["policy_loss"], total["policy_count"]),
            "reward_mean": mean,
            "reward_std": variance**0.5,
            "thought_helped": _ratio(total["helped"], n),
            "equal_rewards": _ratio(total["equal_rewards"], total["complete_count"]),
            "mixing_weight": weight,
            "mixing_weight_rms": weight_squared**0.5,
            "mixing_weight_std": max(0.0, weight_squared - weight**2) ** 0.5,
            **_figures_of_thoughts(total),
        }

    @property
    def n_tokens(self) -> int:
        """Tokens of text on this rank."""
        return int(self.sums["tokens"]) if self.sums else 0


def _of_thoughts(output: QuietStarOutput, labels: Labels) -> dict[str, Tensor]:
    """Return sums over the thoughts whose next tokens have labels: different ones, their tokens and entropy."""
    where = labels.talk.any(-1)[:, None].expand(output.thoughts.shape[:3])  # [B, P, S]
    thoughts = output.thoughts[where]
    n, K = thoughts.shape
    sums = {
        "thoughts": torch.tensor(n if K else 0, device=thoughts.device),
        "distinct": torch.tensor(len(thoughts.unique(dim=0)) if n and K else 0, device=thoughts.device),
        "length": (thoughts != ENDED).sum(),
    }
    if output.drawn_logprob is not None:
        n_drawn = ((thoughts != ENDED).sum(-1) + 1).clamp(max=K).sum()  # An end before the last place is drawn, too.
        sums |= {"surprise": -output.drawn_logprob[where].sum(), "drawn": n_drawn}
    return sums


def _figures_of_thoughts(total: dict[str, Tensor]) -> dict[str, float]:
    figures = {}
    if total["thoughts"]:
        figures["distinct_thoughts"] = _ratio(total["distinct"], total["thoughts"])
        figures["thought_length"] = _ratio(total["length"], total["thoughts"])
    if total.get("drawn"):
        figures["thought_entropy"] = _ratio(total["surprise"], total["drawn"])
    if total.get("nll_gradient"):
        nll, policy = float(total["nll_gradient"]) ** 0.5, float(total["policy_gradient"]) ** 0.5
        figures["policy_share"] = policy / (nll + policy) if policy else 0.0
    return figures


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    return float(numerator.sum() / denominator.sum().clamp(min=1))
