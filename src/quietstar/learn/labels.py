"""Which predictions have a label, and how many there are.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each thought.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""label of a token that is not predicted"""


@dataclass(frozen=True, slots=True)
class Labels:
    """Which predictions have a label, and which of them count.

    Column i predicts the labels at i+1 .. i+M. A column's reward compares all of them, so it counts towards the
    policy loss only where all M are real.
    """

    ahead: Tensor
    """[B, S, M]: label that column i predicts with k more true tokens known; IGNORED past the end."""
    is_column: Tensor
    """[B, S]: where a branch grows."""

    @classmethod
    def look_ahead(
        cls, labels: Tensor, is_column: Tensor, n_ahead_talk: int, attention_mask: Tensor | None = None
    ) -> "Labels":
        """Return the labels that each column predicts, from labels in the usual place (label i belongs to token i).

        Padding in front of a text predicts nothing, not even its first token, so that a row padded on the left has the
        same losses as without padding.

        Args:
            labels: [B, S]
            is_column: [B, S], where a branch grows.
            n_ahead_talk: M.
            attention_mask: [B, S], 0 at padding; None for none.
        """
        S = labels.shape[1]
        padded = torch.nn.functional.pad(labels, (0, n_ahead_talk), value=IGNORED)
        ahead = torch.stack([padded[:, 1 + k : 1 + k + S] for k in range(n_ahead_talk)], dim=-1)
        if attention_mask is not None:
            in_front = attention_mask.cumsum(dim=1) == 0
            ahead = ahead.masked_fill(in_front[..., None], IGNORED)
        return cls(ahead=ahead, is_column=is_column)

    @property
    def base(self) -> Tensor:
        """[B, S]: where the base pass has a label."""
        return self.ahead[..., 0] != IGNORED

    @property
    def talk(self) -> Tensor:
        """[B, S, M]: where a prediction after a thought has a label."""
        return (self.ahead != IGNORED) & self.is_column[..., None]

    @property
    def complete(self) -> Tensor:
        """[B, S]: columns with all their labels."""
        return self.talk.all(dim=-1)

    def count(self) -> "Counts":
        """Return the number of labels of each kind."""
        return Counts(base=self.base.sum(), talk=self.talk.sum((0, 1)), complete=self.complete.sum())


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of labels that losses are means over; those of several batches or ranks are added with +.

    `talk` and `complete` count one thought of each position, whatever P is.
    """

    base: Tensor
    """[]: labels of the base pass."""
    talk: Tensor
    """[M]: labels at each k."""
    complete: Tensor
    """[]: columns with all their labels."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(base=self.base + other.base, talk=self.talk + other.talk, complete=self.complete + other.complete)
