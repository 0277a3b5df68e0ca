"""What a teacher says of a batch: its predictions, which a student without thoughts learns (`quietstar distill`).

Legend: B examples, S tokens in a row, P predictions that are averaged, k tokens, D hidden size.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

TENSORS = ("hidden", "tokens", "logprob", "rest", "nll")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A teacher's predictions at each token: by its states, or by its likeliest tokens; for `fast`, its nll alone."""

    objective: str
    """kl, reverse_kl or fast"""
    head: Any = None
    """the teacher's LM head, a `base.vocabulary.LMHead`"""
    hidden: Tensor | None = None
    """[B, P, S, D] states that `head` turns into predictions"""
    tokens: Tensor | None = None
    """[B, S, k]"""
    logprob: Tensor | None = None
    """[B, S, k]"""
    rest: Tensor | None = None
    """[B, S] log-probability of all other tokens together"""
    nll: Tensor | None = None
    """[B, S] of the label at i+1; 0 where there is none"""
    reward_weight: float = 1.0
    """of `fast`"""

    def __getitem__(self, rows: slice) -> Self:
        """Return some rows of the batch."""
        return replace(self, **{name: value[rows] for name in TENSORS if (value := getattr(self, name)) is not None})
