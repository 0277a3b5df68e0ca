"""Where every token of every branch sits, its position id, and what it may see. Pure geometry.

Legend: B rows of text, S base tokens in a row, P thoughts of each position, C columns in all rows together, N of a row
at most, L tokens of a branch, T some steps of them, Q last base tokens.

    base pass     x0   x1   x2   x3  ...
                        |    |
    branches            |    start  t1  t2  end  x3  x4      grown at column 2: position ids 3, 4, 5, ...
                        start  t1  t2  end  x2  x3           grown at column 1: position ids 2, 3, 4, ...

A branch token sees the base tokens up to its column and its own branch up to itself, never another branch.
Branch tokens are laid out step by step ([L, P, C]), so that one step of all columns is one slice. Columns are ordered
by row, and rows may have different numbers of them: a short text beside a long one costs no unused branches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import BoolTensor, LongTensor, Tensor


@dataclass(frozen=True, kw_only=True)
class ThoughtGrid:
    """The positions of P x C branches of L tokens beside B rows of S base tokens.

    Base tokens have index 0 .. S-1. The t-th token (t = 1 for start) of the branch at column i has index i + t:
    distances, and with them sliding windows, are differences of these indices, as in an ordinary sequence.
    """

    rows: LongTensor
    """[C]: row of each column, rising."""
    columns: LongTensor
    """[C]: base index at which a branch grows, rising along a row."""
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
        base_mask = attention_mask.bool()
        rows, columns = think_at.nonzero(as_tuple=True)
        if position_ids is None:
            position_ids = default_position_ids(base_mask)
        return cls(
            rows=rows,  # type: ignore[arg-type]
            columns=columns,  # type: ignore[arg-type]
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
        """C"""
        return len(self.columns)

    @property
    def is_column(self) -> Tensor:
        """[B, S] bool: where a branch grows."""
        return torch.zeros_like(self.base_mask).index_put((self.rows, self.columns), torch.tensor(True))

    @cached_property
    def per_row(self) -> list[int]:
        """Number of columns of each row."""
        return torch.bincount(self.rows, minlength=self.batch_size).tolist()

    def branch_position_ids(self, steps: range) -> Tensor:
        """Return [T, P, C]: position ids of those steps of all branches; step 0 is start."""
        at_column = self.base_position_ids[self.rows, self.columns]
        ahead = torch.arange(steps.start + 1, steps.stop + 1, device=at_column.device)
        return (at_column + ahead[:, None])[:, None].expand(-1, self.n_passes, -1)

    def sees_base(self, steps: range, window: int | None = None) -> Tensor:
        """Return [T, C, S]: which base tokens those steps of a column see; the same for every pass.

        Without a window all steps see the same, and there is one entry for all of them: [1, C, S].
        """
        base_index = torch.arange(self.n_base, device=self.columns.device)
        seen = (base_index <= self.columns[:, None]) & self.base_mask[self.rows]  # [C, S]
        if window is None:
            return seen[None]
        step = torch.arange(steps.start, steps.stop, device=self.columns.device)
        token_index = self.columns + step[:, None] + 1  # [T, C]
        return seen & (token_index[..., None] - base_index < window)

    def sees_own_branch(self, steps: range, window: int | None = None) -> Tensor:
        """Return [T, steps.stop, C]: which steps of its own branch those steps of a column see."""
        device = self.columns.device
        query_step = torch.arange(steps.start, steps.stop, device=device)
        key_step = torch.arange(steps.stop, device=device)
        distance = query_step[:, None] - key_step  # [T, steps.stop]
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        # the tokens of a branch that grows at a masked token are masked too, as in the released code
        seen = seen[..., None] & self.base_mask[self.rows, self.columns]
        # a token that sees nothing else sees itself: a softmax over nothing is NaN
        blind = ~self.sees_base(steps, window).any(-1)[:, None] & ~seen.any(1, keepdim=True)
        return seen | (blind & (distance == 0)[..., None])

    def sees(self, steps: range, window: int | None = None) -> Tensor:
        """Return [B, T x P x N, S + steps.stop x P x N]: what those branch tokens see, row by row; see `to_rows`.

        The last dimension is the base, then all branch tokens from step 0 up to the last of `steps`. The padding of a
        row with fewer than N columns sees itself: a softmax over nothing is NaN.
        """
        S, P, T = self.n_base, self.n_passes, len(steps)
        seen_base = self.to_rows(self.sees_base(steps, window).expand(T, -1, -1), dim=1)  # [B, T, N, S]
        seen_step = self.to_rows(self.sees_own_branch(steps, window), dim=2)  # [B, T, steps.stop, N]
        B, _, N, _ = seen_base.shape
        is_real = self.to_rows(torch.ones_like(self.rows, dtype=torch.bool), dim=0)  # [B, N]
        query_step = torch.arange(steps.start, steps.stop, device=self.columns.device)
        is_itself = query_step[:, None] == torch.arange(steps.stop, device=self.columns.device)
        seen_step = seen_step | (is_itself[..., None] & ~is_real[:, None, None])
        seen_base = seen_base[:, :, None].expand(B, T, P, N, S).reshape(B, T * P * N, S)
        same_branch = torch.eye(P * N, dtype=torch.bool, device=self.columns.device).view(P, N, 1, P, N)
        seen_branch = seen_step.transpose(2, 3)[:, :, None, :, :, None, None] & same_branch
        return torch.cat([seen_base, seen_branch.reshape(B, T * P * N, steps.stop * P * N)], dim=2)

    def to_rows(self, values: Tensor, dim: int) -> Tensor:
        """Turn [..., C, ...], C at `dim`, into [B, ..., N, ...]: columns by row, zero where a row has fewer than N."""
        B, N = self.batch_size, max(self.per_row)
        if min(self.per_row) == N:
            return values.unflatten(dim, (B, N)).movedim(dim, 0)
        by_column = values.movedim(dim, 0)
        filled = by_column.new_zeros(B * N, *by_column.shape[1:]).index_copy(0, self._in_rows, by_column)
        return filled.unflatten(0, (B, N)).movedim(1, dim + 1)

    def from_rows(self, values: Tensor, dim: int) -> Tensor:
        """Invert `to_rows`: turn [B, ..., N, ...] into [..., C, ...], C at `dim`."""
        return values.movedim(dim + 1, 1).flatten(0, 1)[self._in_rows].movedim(0, dim)

    @cached_property
    def _in_rows(self) -> Tensor:
        """[C]: index of each column among B x N."""
        per_row = torch.tensor(self.per_row, device=self.rows.device)
        first = per_row.cumsum(0) - per_row
        index = torch.arange(self.n_columns, device=self.rows.device)
        return self.rows * max(self.per_row) + index - first[self.rows]

    def parts(self, n: int) -> Iterator[tuple[slice, slice, Self]]:
        """Yield n grids of some columns and the rows that they are in, each as columns, rows, grid.

        If there are fewer than n columns, the last one is in several grids; if there are none, there are no grids.
        """
        C = self.n_columns
        row_of = [row for row, count in enumerate(self.per_row) for _ in range(count)]
        for part in range(n if C else 0):
            some = slice(part * C // n, (part + 1) * C // n) if n <= C else slice(min(part, C - 1), min(part + 1, C))
            text = slice(row_of[some.start], row_of[some.stop - 1] + 1)
            yield (
                some,
                text,
                replace(
                    self,
                    rows=self.rows[some] - text.start,  # type: ignore[arg-type]
                    columns=self.columns[some],  # type: ignore[arg-type]
                    base_mask=self.base_mask[text],  # type: ignore[arg-type]
                    base_position_ids=self.base_position_ids[text],  # type: ignore[arg-type]
                ),
            )

    def gather_columns(self, values: Tensor, ahead: int = 0) -> Tensor:
        """Return [C, ...]: the value `ahead` tokens after each column; past the end of the text, the last one.

        `values` [B, Q, ...] are those of the last Q base tokens.
        """
        n_last = values.shape[1]
        return values[self.rows, (self.columns + ahead - (self.n_base - n_last)).clamp(0, n_last - 1)]

    def scatter_columns(self, values: Tensor, n_last: int | None = None) -> Tensor:
        """Return [B, P, Q, ...]: each column's values at its base position, zero elsewhere.

        Args:
            values: [P, C, ...]
            n_last: Q, the number of last base tokens, which contain all columns; None for all tokens.
        """
        Q = self.n_base if n_last is None else n_last
        everywhere = values.new_zeros(self.batch_size, Q, len(values), *values.shape[2:])
        columns = self.columns - (self.n_base - Q)
        return everywhere.index_put((self.rows, columns), values.transpose(0, 1)).transpose(1, 2)


def default_position_ids(base_mask: Tensor) -> Tensor:
    """Return [B, S]: position ids that count from each row's first token that is not padding."""
    index = torch.arange(base_mask.shape[1], device=base_mask.device)
    first = base_mask.int().argmax(dim=1, keepdim=True)
    return (index - first).clamp(min=0)
