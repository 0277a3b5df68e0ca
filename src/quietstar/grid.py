"""Where every token of every branch sits, its position id, and what it may see. Pure geometry.

Legend: B examples, S base tokens in a row, P passes, N columns in a row, L tokens of a branch.

    base pass     x0   x1   x2   x3  ...
                        |    |
    branches            |    start  t1  t2  end  x3  x4      grown at column 2: position ids 3, 4, 5, ...
                        start  t1  t2  end  x2  x3           grown at column 1: position ids 2, 3, 4, ...

A branch token sees the base tokens up to its column and its own branch up to itself, never another branch.
Branch tokens are laid out step by step ([L, P, N] flattened), so that a step of all columns is one slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import BoolTensor, LongTensor, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtGrid:
    """The places of B x P x N branches of L tokens beside B rows of S base tokens.

    Base tokens have index 0 .. S-1. The t-th token (t = 1 for start) of the branch at column i has index i + t:
    distances, and with them sliding windows, are differences of these indices, as in an ordinary sequence.
    """

    columns: LongTensor
    """[B, N]: base index at which a branch grows, rising along a row; 0 where there is no branch."""
    is_column: BoolTensor
    """[B, N]: False where a row has fewer than N columns."""
    base_mask: BoolTensor
    """[B, S]: base tokens that may be seen; False at padding."""
    base_position_ids: LongTensor
    """[B, S]: position ids of the base tokens."""
    n_passes: int
    """P"""
    branch_length: int
    """L = n_ahead + n_ahead_talk - 1"""

    @classmethod
    def grow(
        cls,
        think_at: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        n_passes: int,
        branch_length: int,
    ) -> Self:
        """Lay out branches at the chosen positions.

        Args:
            think_at: [B, S] true where a branch grows.
            attention_mask: [B, S] zero at padding.
            position_ids: [B, S]; None counts from each row's first token that is not padding.
            n_passes: P, branches at each column.
            branch_length: L, tokens of a branch.
        """
        think_at, base_mask = think_at.bool(), attention_mask.bool()
        n_columns = think_at.sum(1)
        N = int(n_columns.max()) if think_at.numel() else 0
        # a stable sort puts the chosen positions first and keeps their order
        columns = torch.argsort((~think_at).int(), dim=1, stable=True)[:, :N]
        is_column = torch.arange(N, device=think_at.device) < n_columns[:, None]
        if position_ids is None:
            position_ids = default_position_ids(base_mask)
        return cls(
            columns=columns.masked_fill(~is_column, 0),  # type: ignore[arg-type]
            is_column=is_column,  # type: ignore[arg-type]
            base_mask=base_mask,  # type: ignore[arg-type]
            base_position_ids=position_ids.expand_as(base_mask),  # type: ignore[arg-type]
            n_passes=n_passes,
            branch_length=branch_length,
        )

    @property
    def batch_size(self) -> int:
        """B"""
        return self.base_mask.shape[0]

    @property
    def n_base(self) -> int:
        """S"""
        return self.base_mask.shape[1]

    @property
    def n_columns(self) -> int:
        """N"""
        return self.columns.shape[1]

    @property
    def step_size(self) -> int:
        """P x N, the tokens of one step of all branches."""
        return self.n_passes * self.n_columns

    def branch_position_ids(self, steps: range) -> Tensor:
        """[B, len(steps) x P x N]: position ids of those steps of all branches; step 0 is start."""
        at_column = self.base_position_ids.gather(1, self.columns)  # [B, N]
        ahead = torch.tensor([step + 1 for step in steps], device=at_column.device)
        positions = at_column[:, None, None, :] + ahead[None, :, None, None]  # [B, L', 1, N]
        return positions.expand(-1, -1, self.n_passes, -1).flatten(1)

    def base_sight(self, window: int | None = None) -> Tensor:
        """[B, S, S]: which base token (last) each base token sees."""
        index = torch.arange(self.n_base, device=self.columns.device)
        distance = index[:, None] - index[None, :]
        seen = (distance >= 0) & self.base_mask[:, None, :]
        if window is not None:
            seen &= distance < window
        # a token with nothing to see sees itself, as a softmax over nothing is NaN
        blind = ~seen.any(dim=-1, keepdim=True)
        return seen | (blind & (distance == 0))

    def prefix_sight(self, steps: range, window: int | None = None) -> Tensor:
        """[B, len(steps), N, S]: which base tokens those steps of a column see; the same for every pass.

        Without a window all steps see alike, and there is one entry for all of them: [B, 1, N, S].
        """
        base_index = torch.arange(self.n_base, device=self.columns.device)
        seen = (base_index <= self.columns[..., None]) & self.base_mask[:, None, :]  # [B, N, S]
        if window is None:
            return seen[:, None]
        step = torch.arange(steps.start, steps.stop, device=self.columns.device)
        token_index = self.columns[:, None, :] + step[:, None] + 1  # [B, Q, N]
        return seen[:, None] & (token_index[..., None] - base_index < window)

    def own_sight(self, steps: range, window: int | None = None) -> Tensor:
        """[B, len(steps), steps.stop, N]: which steps of its own branch those steps of a column see."""
        device = self.columns.device
        query_step = torch.arange(steps.start, steps.stop, device=device)
        key_step = torch.arange(steps.stop, device=device)
        distance = query_step[:, None] - key_step  # [Q, steps.stop]
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        # what grows on a masked token is masked as that token is: the released code does the same
        may_be_seen = self.base_mask.gather(1, self.columns)[:, None, None]  # [B, 1, 1, N]
        seen = seen[..., None] & may_be_seen
        blind = ~self.prefix_sight(steps, window).any(-1)[:, :, None] & ~seen.any(2, keepdim=True)
        return seen | (blind & (distance == 0)[..., None])

    def branch_sight(self, steps: range, window: int | None = None) -> Tensor:
        """[B, len(steps) x P x N, S + steps.stop x P x N]: what those branch tokens see.

        The last dimension is the base, then all branch tokens from step 0 up to the last of `steps`.
        """
        B, S, P, N = self.batch_size, self.n_base, self.n_passes, self.n_columns
        Q = len(steps)
        seen_base = self.prefix_sight(steps, window).expand(B, Q, N, S)
        seen_base = seen_base[:, :, None].expand(B, Q, P, N, S).reshape(B, Q * P * N, S)
        same_branch = torch.eye(P * N, dtype=torch.bool, device=self.columns.device).view(P, N, 1, P, N)
        seen_step = self.own_sight(steps, window).transpose(2, 3)  # [B, Q, N, steps.stop]
        seen_branch = seen_step[:, :, None, :, :, None, None] & same_branch
        return torch.cat([seen_base, seen_branch.reshape(B, Q * P * N, steps.stop * P * N)], dim=2)

    def parts(self, n: int) -> Iterator[tuple[slice, Self]]:
        """At most n grids that each have some of the columns, and which."""
        size = max(1, -(-self.n_columns // n))
        for first in range(0, self.n_columns, size):
            some = slice(first, first + size)
            yield some, replace(self, columns=self.columns[:, some], is_column=self.is_column[:, some])  # type: ignore[arg-type]

    def gather_columns(self, values: Tensor, ahead: int = 0) -> Tensor:
        """[B, Q, ...] for the last Q base tokens -> [B, N, ...]: what stands `ahead` of each column.

        Past the end of the text, what stands at its end.
        """
        Q = values.shape[1]
        index = (self.columns + ahead - (self.n_base - Q)).clamp(0, Q - 1)
        index = index.reshape(*index.shape, *[1] * (values.dim() - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    def scatter_columns(self, values: Tensor) -> Tensor:
        """[B, P, N, ...] -> [B, P, S, ...]: each column's values at its base position, zero elsewhere."""
        B, P, N = values.shape[:3]
        trailing = [1] * (values.dim() - 3)
        index = self.columns.reshape(B, 1, N, *trailing).expand_as(values)
        real = values.masked_fill(~self.is_column.reshape(B, 1, N, *trailing), 0)
        return values.new_zeros(B, P, self.n_base, *values.shape[3:]).scatter_add(2, index, real)


def default_position_ids(base_mask: Tensor) -> Tensor:
    """[B, S] position ids that count from each row's first token that is not padding."""
    index = torch.arange(base_mask.shape[1], device=base_mask.device)
    first = base_mask.int().argmax(dim=1, keepdim=True)
    return (index - first).clamp(min=0)
