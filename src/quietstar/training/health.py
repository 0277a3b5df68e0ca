"""Health checks of a training run: warnings of what goes wrong when a model learns to think.

Each check reads the figures that a run logs, and warns once, at the step where it shows. The thresholds were chosen on
recorded runs of a real model, healthy and unhealthy ones; see docs/training.md.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from quietstar.training.parts import Part

FEWEST_DISTINCT = 0.5
"""share of the distinct thoughts in the run's first line below which they have collapsed"""
AS_LONG = 0.9
"""share of the first line's length of thoughts below which they are shorter: short ones repeat in a healthy run"""
EMPTY = 0.1
"""tokens of a thought on average below which thoughts are empty"""
LOWEST_ENTROPY = 0.2
"""share of the entropy of thought tokens in the run's first line below which they have collapsed"""
HELPFUL = 0.05
"""nats a token: thoughts of little entropy that lower the nll by this much have not collapsed"""
HIGHEST_POLICY_SHARE = 0.9
"""share of the policy term in the gradient above which it drowns the nll's"""
OPENED_BY = 50
"""step at which the mixing head should have opened"""
LOWEST_MIXING_WEIGHT = 1e-3
"""root mean square of the mixing weight below which the head is closed"""


@dataclass(kw_only=True)
class HealthChecks(Part):
    """Looks at lines of figures, and remembers which checks have warned."""

    kept: ClassVar[tuple[str, ...]] = ("warned", "first_entropy", "first_distinct", "first_length", "reward_mean")

    warned: list[str] = field(default_factory=list)
    """names of the checks that have warned"""
    first_entropy: float | None = None
    """entropy of thought tokens in the run's first line"""
    first_distinct: float | None = None
    """share of distinct thoughts there: thoughts of one token repeat in a healthy run, too"""
    first_length: float | None = None
    """tokens of a thought there"""
    reward_mean: float | None = None
    """of the latest line of training figures that had any reward"""

    def look(self, step: int, figures: dict[str, float], warmup_steps: int = 0) -> list[str]:
        """Return the warnings of this step; each check warns once in a run.

        Args:
            step: at which the line was logged.
            figures: of training, or of held-out text under `eval_` names.
            warmup_steps: over which the learning rate rises; the mixing head may stay closed that long.
        """
        found = {
            "drift": self.drift(figures),
            "collapse": self.collapse(figures),
            "empty": self.empty(figures),
            "drowning": self.drowning(figures),
            "shut_head": self.shut_head(figures) if step >= OPENED_BY + warmup_steps else None,
            "no_rewards": self.no_rewards(figures) if step > warmup_steps + 1 else None,
        }
        new = {name: words for name, words in found.items() if words is not None and name not in self.warned}
        self.warned = [*self.warned, *new]
        if figures.get("reward_mean"):
            self.reward_mean = figures["reward_mean"]
        if self.first_entropy is None and "thought_entropy" in figures:
            self.first_entropy, self.first_distinct = figures["thought_entropy"], figures["distinct_thoughts"]
            self.first_length = figures.get("thought_length")
        return [f"step {step}: {words}" for words in new.values()]

    def drift(self, figures: dict[str, float]) -> str | None:
        """Return a warning if the base pass predicts held-out text worse than before, in all of the interval."""
        low = figures.get("eval_drift_low")
        if low is None or low <= 0:  # NaN compares false, and is worse, too
            return None
        rewards = ""
        if self.reward_mean is not None and self.reward_mean > 0:
            rewards = f"; rewards compare with this worse base pass: reward_mean {self.reward_mean:+.3g} is no gain"
        before, now, drift, high = (figures[f"eval_{of}"] for of in ("nll_before", "base_nll", "drift", "drift_high"))
        advice = "Lower --learning_rate, or stop earlier"
        if "eval_talk_nll_0" in figures:
            advice = (
                "Lower --policy_weight or --learning_rate, or keep the base pass out of reach: --branch_adapters "
                "--freeze_base"
            )
        return (
            f"without thoughts, held-out text is predicted worse than before training: base_nll {now:.4g}, "
            f"{before:.4g} before (drift {drift:+.3g}, 95 % interval {low:+.3g} to {high:+.3g}){rewards}. {advice}"
        )

    def collapse(self, figures: dict[str, float]) -> str | None:
        """Return a warning if thoughts are all alike, or their tokens are certain although the thoughts do not help."""
        distinct, entropy = figures.get("distinct_thoughts"), figures.get("thought_entropy")
        if distinct is None or entropy is None or self.first_entropy is None or self.first_distinct is None:
            return None
        are_shorter = figures.get("thought_length", math.inf) < AS_LONG * (self.first_length or 0.0)
        are_alike = distinct < FEWEST_DISTINCT * self.first_distinct and not are_shorter
        is_certain = entropy < LOWEST_ENTROPY * self.first_entropy and figures["thought_gain"] < HELPFUL
        if not (are_alike or is_certain):
            return None
        return (
            f"thoughts collapse: {distinct:.1%} of them are distinct ({self.first_distinct:.1%} at first), and their "
            f"tokens have an entropy of {entropy:.3g} nats ({self.first_entropy:.3g} at first). Lower "
            "--policy_weight (balanced:0.1 holds its gradient to a tenth of the nll's) or --learning_rate, score "
            "thoughts as they are sampled (--reinforce_temperature 1), weaken bad ones, too (--advantage "
            "leave_one_out), or hold them near those of a moving average (--reference ema --kl_weight 0.1)"
        )

    def empty(self, figures: dict[str, float]) -> str | None:
        """Return a warning if thoughts end before their first token, and did not at first."""
        length = figures.get("thought_length")
        if length is None or self.first_length is None or not length < EMPTY <= self.first_length:
            return None
        return (
            f"thoughts end at once: they have {length:.2g} tokens on average ({self.first_length:.3g} at first), and "
            "are worth less than their price. Lower --length_price"
        )

    def drowning(self, figures: dict[str, float]) -> str | None:
        """Return a warning if the policy term sets the direction of a step almost alone."""
        share = figures.get("policy_share")
        if share is None or not share > HIGHEST_POLICY_SHARE:  # NaN says nothing
            return None
        return (
            f"the policy term's gradient drowns the nll's: {100 * share:.4g} % of their lengths is the policy's, and "
            "clipping the gradient's norm leaves nothing of the nll's. Lower --policy_weight, or balance it: "
            "--policy_weight balanced:0.1"
        )

    def shut_head(self, figures: dict[str, float]) -> str | None:
        """Return a warning if the mixing head has stayed near zero, where it began: thoughts then have no effect."""
        weight = figures.get("mixing_weight_rms")
        if weight is None or not weight < LOWEST_MIXING_WEIGHT:
            return None
        return (
            f"the mixing head has not opened: its weights are {weight:.2g} (root mean square), so that thoughts change "
            "next to nothing and have next to no reward. Raise --head_learning_rate, to 1e-3 for instance"
        )

    def no_rewards(self, figures: dict[str, float]) -> str | None:
        """Return a warning if every thought has the reward 0."""
        if "policy_loss" not in figures or figures["reward_std"] > 0 or figures["reward_mean"] != 0:
            return None
        said = "all rewards are 0: no thought changes any prediction, and the policy loss has nothing to reinforce. "
        if not self.reward_mean:
            return f"{said}Check that --learning_rate is above 0 and that rows are longer than n_ahead_talk"
        if figures["mixing_weight_rms"] >= LOWEST_MIXING_WEIGHT:
            return None  # The rows of this line are too short for a reward.
        return f"{said}There were some before: the mixing head has shut. Lower --head_learning_rate or --learning_rate"
