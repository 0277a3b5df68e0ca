"""Blocks of columns that attend together, and the keys they see. Blocks are rectangular although rows are ragged.

Legend: B rows of text, Q steps of P passes of C columns, S base tokens whose keys are kept, L steps of the branches so
far. A block has n columns of each of b rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quietstar.grid import ThoughtGrid

STEPS_AT_ONCE = 64
"""most steps of a branch in a block; keys of its own branch after the last of them are never multiplied"""

COLUMNS_AT_ONCE = 128
"""most columns of a row in a block; keys after the last of them are never multiplied"""

SCORES_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""elements of a block of scores, chosen to fit a core's cache, or to keep a GPU busy"""


@dataclass(slots=True)
class Place:
    """Some steps of the columns of a block, n of each of b rows, and the tokens that any of them sees."""

    rows: slice | Tensor
    columns: slice | Tensor
    """the columns of each row as a slice if all rows have equally many, otherwise indices [b, n] into all columns"""
    per_row: int
    """columns of every row, if all rows have equally many"""
    is_real: Tensor | None
    """[b, n] bool: False for padding, where a row has fewer columns; None if there is no padding"""
    real: tuple[Tensor, Tensor] | None
    """indices of the real places among the b x n, and of their columns among all columns; None if all are real"""
    keys: slice
    """base tokens that any of the columns sees"""
    steps: slice
    """the block's steps among the Q"""
    own: slice
    """tokens of its own branch that the last of these steps sees"""

    def take(self, values: Tensor) -> Tensor:
        """Gather the block's columns from values [x, C, ...]: [x, b, n, ...]."""
        return values[:, self.columns] if isinstance(self.columns, Tensor) else self._even(values)

    def put(self, into: Tensor, values: Tensor) -> None:
        """Scatter values [x, b, n, ...] into [x, C, ...], without the padding."""
        if not isinstance(self.columns, Tensor):
            self._even(into).copy_(values)
        elif self.real is None:
            into[:, self.columns] = values.to(into.dtype)
        else:
            some, columns = self.real
            into[:, columns] = values.flatten(1, 2)[:, some].to(into.dtype)

    def add(self, into: Tensor, values: Tensor) -> None:
        """Add values [x, b, n, ...] to [x, C, ...], without the padding."""
        self.put(into, self.take(into) + values)

    def _even(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (-1, self.per_row))[:, self.rows, self.columns]


@dataclass(slots=True)
class Sight:
    """The keys that are hidden from branch tokens under one layer's window: the opposite of ThoughtGrid.sees_base."""

    n_passes: int
    """P"""
    per_row: list[int]
    """number of columns of each row; columns are ordered by row"""
    prefix_hidden: Tensor
    """[C, Q or 1, S] bool: base tokens hidden from a column's steps; one entry if all steps see the same"""
    own_hidden: Tensor
    """[C or 1, Q, L] bool: tokens of its own branch hidden from a step; one entry if it is the same for all columns"""
    _reach: list[tuple[int, int]] = field(init=False)
    """for each column, the first base token that any of its steps sees, and one past the last"""
    _places: dict[int, list[Place]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        seen = ~self.prefix_hidden.all(dim=1)  # [C, S]
        S = seen.shape[1]
        first = torch.where(seen.any(1), seen.int().argmax(1), S)
        last = torch.where(seen.any(1), S - seen.flip(1).int().argmax(1), 0)
        self._reach = torch.stack([first, last], dim=1).tolist()

    @classmethod
    def over(cls, grid: ThoughtGrid, steps: range, window: int | None, n_kept: int) -> "Sight":
        """Return the sight of some steps of all branches; the last n_kept base tokens have keys."""
        prefix = grid.sees_base(steps, window)[..., grid.n_base - n_kept :]
        is_alike = bool(grid.base_mask[grid.rows, grid.columns].all())  # Only masked columns hide their own tokens.
        one: dict[str, Any] = {"rows": grid.rows[:1], "columns": grid.columns[:1]}
        of = replace(grid, **one) if is_alike else grid
        own = of.sees_own_branch(steps, window)
        return cls(grid.n_passes, grid.per_row, ~prefix.transpose(0, 1), ~own.permute(2, 0, 1))

    @property
    def is_in_steps(self) -> bool:
        """Whether a column's steps are in several blocks."""
        return self.own_hidden.shape[1] > STEPS_AT_ONCE

    def prefix_at(self, place: Place) -> Tensor:
        """Return which of a block's base tokens are hidden from its steps, [1, b, n, Q or 1, T]."""
        hidden = place.take(self.prefix_hidden[None])[..., place.keys]
        return hidden if hidden.shape[3] == 1 else hidden[..., place.steps, :]

    def own_at(self, place: Place) -> Tensor:
        """Return which tokens of their own branch are hidden from a block's steps, [1, b or 1, n or 1, Q, L]."""
        is_alike = len(self.own_hidden) == 1
        hidden = self.own_hidden[None, None] if is_alike else place.take(self.own_hidden[None])
        return hidden[..., place.steps, place.own]

    def places(self, n_heads: int) -> list[Place]:
        """Return blocks of columns, as large as SCORES_AT_ONCE allows."""
        if n_heads not in self._places:
            self._places[n_heads] = [
                place
                for first in range(0, self.own_hidden.shape[1], STEPS_AT_ONCE)
                for place in self._in_blocks(n_heads, slice(first, first + STEPS_AT_ONCE))
            ]
        return self._places[n_heads]

    def _in_blocks(self, n_heads: int, steps: slice) -> Iterator[Place]:
        """Yield the blocks of some steps."""
        device, (_, Q, L) = self.own_hidden.device, self.own_hidden.shape
        stop = min(steps.stop, Q)
        steps, own = slice(steps.start, stop), slice(0, L - Q + stop)
        n_queries = n_heads * self.n_passes * (stop - steps.start)
        fitting = SCORES_AT_ONCE.get(device.type, SCORES_AT_ONCE["cpu"]) // n_queries
        n = COLUMNS_AT_ONCE
        while n > 1 and n * self.prefix_hidden.shape[2] > fitting:
            n //= 2
        starts = [sum(self.per_row[:row]) for row in range(len(self.per_row))]
        for first in range(0, max(self.per_row, default=0), n):
            rows = [row for row, count in enumerate(self.per_row) if count > first]
            ranges = {row: (starts[row] + first, starts[row] + min(first + n, self.per_row[row])) for row in rows}
            keys = self._keys(ranges.values())
            b = max(1, fitting // (n * max(1, keys.stop - keys.start)))
            for at in range(0, len(rows), b):
                yield self._place(first, {row: ranges[row] for row in rows[at : at + b]}, steps, own)

    def _keys(self, ranges: Iterable[tuple[int, int]]) -> slice:
        """Return the base tokens that any column in these ranges sees."""
        reach = [pair for start, stop in ranges for pair in self._reach[start:stop]]
        start = min(low for low, _ in reach)
        return slice(start, max(start, *(high for _, high in reach)))

    def _place(self, first: int, ranges: dict[int, tuple[int, int]], steps: slice, own: slice) -> Place:
        """Return a block: columns from the `first` of each row, whose `ranges` are their indices among all columns."""
        keys, rows = self._keys(ranges.values()), list(ranges)
        counts = [stop - start for start, stop in ranges.values()]
        if len(set(self.per_row)) == 1:
            columns = slice(first, first + counts[0])
            return Place(slice(rows[0], rows[-1] + 1), columns, self.per_row[0], None, None, keys, steps, own)
        device = self.own_hidden.device
        start = torch.tensor([start for start, _ in ranges.values()], device=device)[:, None]
        count = torch.tensor(counts, device=device)[:, None]
        ahead = torch.arange(max(counts), device=device)
        among_all = start + ahead.minimum(count - 1)
        is_real, real = None, None
        if len(set(counts)) > 1:
            is_real = ahead < count
            some = is_real.flatten().nonzero().squeeze(1)
            real = some, among_all.flatten()[some]
        return Place(torch.tensor(rows, device=device), among_all, 0, is_real, real, keys, steps, own)
