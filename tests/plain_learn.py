"""Learning from predictions, entry by entry in plain Python: the yardstick of `quietstar.learn`, with no code of it.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each thought, K sampled tokens.
Values are nested lists, indexed in this order.
"""

from dataclasses import dataclass
from math import exp
from statistics import fmean, pstdev
from typing import Any


@dataclass
class Learned:
    """What a step learns: rewards and advantages [B][P][S] by place (b, p, i), and the losses."""

    reward: dict[tuple[int, int, int], float]
    advantage: dict[tuple[int, int, int], float]
    nll: float
    policy_loss: float


def mean(values: list[float]) -> float:
    return fmean(values) if values else 0.0


def advantages(rewards: list[float], kind: str) -> list[float]:
    """Those of one position's thoughts, as each source writes them."""
    P = len(rewards)
    if P == 1:
        return [max(0.0, rewards[0]) if kind == "positive" else rewards[0]]
    average = fmean(rewards)
    if kind == "positive":
        return [max(0.0, each - average) for each in rewards]
    if kind == "centered":
        return [each - average for each in rewards]
    if kind == "leave_one_out":
        return [each - (sum(rewards) - each) / (P - 1) for each in rewards]
    return [(each - average) / (pstdev(rewards) + 1e-4) for each in rewards]  # standardized


def surrogate(advantage: float, ratio: float, clip_ratio: float | None) -> float:
    """PPO's: a ratio that has gone further than clip_ratio the way its advantage points counts no more."""
    if clip_ratio is not None and advantage > 0 and ratio > 1 + clip_ratio:
        return -advantage * (1 + clip_ratio)
    if clip_ratio is not None and advantage < 0 and ratio < 1 - clip_ratio:
        return -advantage * (1 - clip_ratio)
    return -advantage * ratio


def plain_learn(
    labels: list[list[int]],
    is_column: list[list[bool]],
    base_nll: Any,
    talk_nll: Any,
    thought_logprob: Any,
    *,
    advantage: str,
    base_loss_weight: float,
    reference_nll: Any = None,
    reference_logprob: Any = None,
    first_logprob: Any = None,
    first_advantage: Any = None,
    clip_ratio: float | None = None,
    kl_weight: float = 0.0,
) -> Learned:
    """Learn from base_nll [B][S], talk_nll [B][P][S][M] and thought_logprob [B][P][S][K]; a label of -100 is none.

    What the reference and a first policy epoch said has the shapes of the same here.
    """
    B, S = len(labels), len(labels[0])
    P, M = len(talk_nll[0]), len(talk_nll[0][0][0])

    def has_label(b: int, i: int) -> bool:
        return i < S and labels[b][i] != -100

    columns = [(b, i) for b in range(B) for i in range(S) if is_column[b][i]]
    reward = {(b, p, i): 0.0 for b in range(B) for p in range(P) for i in range(S)}
    by_place = dict(reward)
    for b, i in columns:
        ahead = [k for k in range(M) if has_label(b, i + 1 + k)]
        without = base_nll if reference_nll is None else reference_nll
        rewards = [sum(without[b][i + k] - talk_nll[b][p][i][k] for k in ahead) for p in range(P)]
        for p, value in enumerate(advantages(rewards, advantage)):
            reward[b, p, i] = rewards[p]
            by_place[b, p, i] = value if first_advantage is None else first_advantage[b][p][i]
    base = mean([base_nll[b][i] for b in range(B) for i in range(S) if has_label(b, i + 1)])
    talk = [
        mean([talk_nll[b][p][i][k] for b, i in columns for p in range(P) if has_label(b, i + 1 + k)]) for k in range(M)
    ]
    terms = []
    for b, i in columns:
        if not all(has_label(b, i + 1 + k) for k in range(M)):
            continue
        for p in range(P):
            for j, logprob in enumerate(thought_logprob[b][p][i]):
                term = -by_place[b, p, i] * logprob
                if first_logprob is not None:
                    term = surrogate(by_place[b, p, i], exp(logprob - first_logprob[b][p][i][j]), clip_ratio)
                if kl_weight:
                    term += kl_weight * (logprob - reference_logprob[b][p][i][j]) ** 2 / 2
                terms.append(term)
    nll = base_loss_weight * base + (1 - base_loss_weight) * mean(talk)
    return Learned(reward=reward, advantage=by_place, nll=nll, policy_loss=mean(terms))
