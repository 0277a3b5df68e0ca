"""Step 3, learn: losses and rewards from predictions (arXiv 2403.09629, section 4.4). Pure functions."""

from quietstar.learn.labels import IGNORED, Counts, Labels
from quietstar.learn.loss import nll_loss, nll_weights, policy_loss, policy_terms, thought_shares, token_weights
from quietstar.learn.policy_weight import HIGHEST_BALANCED_WEIGHT, PolicyWeight
from quietstar.learn.reward import ADVANTAGES, advantage, reward
from quietstar.learn.rollout import NO_ROLLOUT, Rollout

__all__ = [
    "ADVANTAGES",
    "HIGHEST_BALANCED_WEIGHT",
    "IGNORED",
    "NO_ROLLOUT",
    "Counts",
    "Labels",
    "PolicyWeight",
    "Rollout",
    "advantage",
    "nll_loss",
    "nll_weights",
    "policy_loss",
    "policy_terms",
    "reward",
    "thought_shares",
    "token_weights",
]
