"""Arms of a study: ways to spend the same training on the same text, which are compared on the same held-out tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quietstar.learn import PolicyWeight

UNTOUCHED, PLAIN, THINKING = "untouched", "plain", "thinking"
"""kinds of arms: the base model as it is, trained without thoughts, trained with them"""

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, by the options of `quietstar train` that it adds to those of all arms."""

    name: str
    about: str
    kind: str = THINKING
    options: dict[str, Any] = field(default_factory=dict)
    is_sharpened: bool = False
    """whether one temperature, chosen on the selection text, divides its logits"""
    matches_compute: bool = False
    """whether it takes as many steps as the FLOPs of the most expensive thinking arm pay for"""

    def role(self, options: Mapping[str, Any]) -> str:
        """Return what it is in a comparison, by all options that it trains with: one of the constants below."""
        if self.kind != THINKING:
            return SAME_COMPUTE if self.matches_compute else OTHER
        if options.get("thought_source") not in (None, "sampled"):
            return NO_CONTENT
        weight = options.get("policy_weight")
        return NOT_REINFORCED if weight is not None and PolicyWeight.parse(weight).value == 0 else CANDIDATE


CANDIDATE = "its thoughts are reinforced"
NO_CONTENT = "thoughts without content"
NOT_REINFORCED = "thoughts that nothing reinforces"
SAME_COMPUTE = "the same compute without thoughts"
OTHER = "another arm without thoughts"


RLP = {
    "reference": "ema",
    "advantage": "leave_one_out",
    "mixing": "thought",
    "nll_weight": 0,
    "policy_weight": 1,
    "n_ahead_talk": 1,
    "initial_thought_text": "<think>",
    "thought_temperature": 0.7,
    "reinforce_temperature": 0.7,
}
"""as recipes/rlp.yaml, at a study's own lengths and numbers of thoughts"""

READY: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name=BASE, about="the model as it is", kind=UNTOUCHED),
        Arm(
            name="base-sharpened",
            about="the model as it is, its logits divided by one temperature chosen on the selection text",
            kind=UNTOUCHED,
            is_sharpened=True,
        ),
        Arm(name="finetune", about="plain training on the same text, as many steps", kind=PLAIN),
        Arm(
            name="finetune-compute",
            about="plain training on the same text, for the FLOPs of the most expensive thinking arm",
            kind=PLAIN,
            matches_compute=True,
        ),
        Arm(
            name="filler",
            about="thoughts of one fixed token: the computation without the content",
            options={"thought_source": "filler"},
        ),
        Arm(name="random", about="thoughts of random tokens", options={"thought_source": "random"}),
        Arm(
            name="no-policy",
            about="the model's own thoughts, which nothing reinforces",
            options={"policy_weight": 0},
        ),
        Arm(name="quietstar", about="Quiet-STaR (arXiv 2403.09629)"),
        Arm(name="rlp", about="the objective of RLP (arXiv 2510.01265)", options=RLP),
    )
}
"""arms that come ready, by name"""
