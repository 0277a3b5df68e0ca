"""What is known of a batch from before the pass that learns from it: by a reference, and by an earlier policy epoch.

Legend: B examples, S tokens in a row, P thoughts of each position, K sampled tokens of a thought.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from torch import Tensor

from quietstar.learn.lesson import Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What rewards and the policy loss compare with, in place of this pass; None where that is the pass itself.

    A pass that is given `logprob` or `reference_logprob` is given the thoughts that these belong to.
    """

    reference_nll: Tensor | None = None
    """[B, S]: the reference's base_nll, which rewards compare with"""
    reference_logprob: Tensor | None = None
    """[B, P, S, K]: the reference's thought_logprob, which kl_weight holds thoughts to"""
    logprob: Tensor | None = None
    """[B, P, S, K]: thought_logprob in the first policy epoch of these thoughts"""
    advantage: Tensor | None = None
    """[B, P, S]: their advantages in that epoch"""
    drawn_logprob: Tensor | None = None
    """[B, P, S, K]: of the tokens in the distribution that they were drawn from, for the entropy that is logged"""
    clip_ratio: float | None = None
    """how far from 1 a ratio of probabilities, now and in that epoch, may lead (PPO, arXiv 1707.06347)"""
    kl_weight: float = 0.0
    """weight of the divergence from the reference in the policy loss"""
    lesson: Lesson | None = None
    """predictions of a teacher, which a student that does not think learns, in distillation"""

    @property
    def bends(self) -> bool:
        """Whether the policy loss is another function of thought_logprob than REINFORCE's, which is linear."""
        return self.logprob is not None or self.kl_weight != 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def __getitem__(self, rows: slice) -> Self:
        """Return some rows of the batch."""
        some: dict[str, Any] = {name: value[rows] for name, value in self.tensors().items()}
        if self.lesson is not None:
            some["lesson"] = self.lesson[rows]
        return replace(self, **some)


NO_ROLLOUT = Rollout()
"""of a pass that compares with itself alone"""
