"""Step 3, learn: losses and rewards from predictions (arXiv 2403.09629, section 4.4). Pure functions."""

from quietstar.learn.labels import IGNORED, Counts, Labels
from quietstar.learn.loss import nll_loss, nll_weights, policy_loss, thought_weights
from quietstar.learn.policy_weight import HIGHEST_BALANCED_WEIGHT, PolicyWeight
from quietstar.learn.reward import ADVANTAGES, advantage, reward

__all__ = [
    "ADVANTAGES",
    "HIGHEST_BALANCED_WEIGHT",
    "IGNORED",
    "Counts",
    "Labels",
    "PolicyWeight",
    "advantage",
    "nll_loss",
    "nll_weights",
    "policy_loss",
    "reward",
    "thought_weights",
]
