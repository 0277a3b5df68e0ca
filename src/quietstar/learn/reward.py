"""What a thought is worth: how much likelier it made the text that follows, beside the position's other thoughts.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each thought.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quietstar.learn.labels import Labels


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


def advantage(reward: Tensor, kind: str = "positive") -> Tensor:
    """Return [B, P, S]: how much better a thought is than the others of its position, by one of ADVANTAGES.

    A single thought has no others and is compared with 0: its reward is its advantage, at least 0 if `positive`.
    """
    if reward.shape[1] > 1:
        exact = reward.double()  # the mean of equal rewards is then equal to them
        return ADVANTAGES[kind](exact - exact.mean(1, keepdim=True)).float()
    return reward.clamp(min=0) if kind == "positive" else reward


def _leave_one_out(centered: Tensor) -> Tensor:
    P = centered.shape[1]
    return centered * (P / (P - 1))


def _standardized(centered: Tensor) -> Tensor:
    return centered / (centered.square().mean(1, keepdim=True).sqrt() + SMALLEST_SPREAD)


SMALLEST_SPREAD = 1e-4
"""nats, added to a spread before rewards are divided by it, so that differences by rounding stay small"""

ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda centered: centered.clamp(min=0),  # max(0, r - mean): arXiv 2403.09629
    "centered": lambda centered: centered,  # r - mean
    "leave_one_out": _leave_one_out,  # r - mean of the others = P / (P - 1) (r - mean): arXiv 2402.14740, 2510.01265
    "standardized": _standardized,  # (r - mean) / spread, the population standard deviation: arXiv 2402.03300
}
"""kind -> function of rewards [B, P, S] minus the mean over P"""
