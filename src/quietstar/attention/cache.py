"""Keys and values of a base pass, and of the branches that grow on it."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid


class BranchLayer(DynamicLayer):
    """One layer's keys and values: those of the base tokens, and those of the branch tokens so far.

    Args:
        keys: [B, J, S, d]
        values: [B, J, S, d']
        grid: where branches grow.
        branches_in_rows: see AttentionBackend. If True, `update` returns all keys and values so far in one tensor, as
            the base model's own attention needs them; if False, only the new ones, and `own` has all of the branches.
        room: steps to allocate memory for, which has no gradient; 0 keeps a piece for each pass instead.
    """

    def __init__(self, keys: Tensor, values: Tensor, grid: ThoughtGrid, branches_in_rows: bool, room: int = 0) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.branches_in_rows, self.room = branches_in_rows, 0 if branches_in_rows else room
        self.shape = (-1, grid.n_passes, grid.n_columns)
        self.pieces: list[tuple[Tensor, Tensor]] = []
        """by pass: in rows [B, J, l x P x N, d], or by branch [J, C, P, l, d], and the same of values"""
        self.memory: list[Tensor] = []
        """[J, C, P, room, d] keys, then values"""
        self.n_steps = 0

    @property
    def own(self) -> list[tuple[Tensor, Tensor]]:
        """Keys [J, C, P, l, d] and values of the branches, some steps l in each piece."""
        if not self.memory:
            return self.pieces
        keys, values = (memory[..., : self.n_steps, :] for memory in self.memory)
        return [(keys, values)]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of some steps of all branches."""
        if self.branches_in_rows:
            self.pieces.append((key_states, value_states))
            keys, values = zip(*self.pieces, strict=True)
            return torch.cat([self.keys, *keys], dim=2), torch.cat([self.values, *values], dim=2)
        new = [each[0].unflatten(1, self.shape).permute(0, 3, 2, 1, 4) for each in (key_states, value_states)]
        self._append(new)
        return key_states, value_states

    def _append(self, new: list[Tensor]) -> None:
        """Append keys [J, C, P, l, d] and values, to the memory if there is room."""
        first, self.n_steps = self.n_steps, self.n_steps + new[0].shape[3]
        if not self.room:
            self.pieces.append((new[0], new[1]))
            return
        if not self.memory:
            self.memory = [each.new_empty(*each.shape[:3], self.room, each.shape[4]) for each in new]
        for memory, each in zip(self.memory, new, strict=True):
            memory[..., first : self.n_steps, :] = each

    def repeat(self, n_passes: int) -> None:
        """See BranchCache."""
        self.shape = (-1, n_passes, self.shape[2])
        if self.branches_in_rows:
            self.pieces = [tuple(x.repeat(1, 1, n_passes, 1) for x in piece) for piece in self.pieces]  # type: ignore[misc]
            return
        once, self.pieces, self.memory, self.n_steps = self.own, [], [], 0
        for piece in once:
            self._append([x.expand(-1, -1, n_passes, -1, -1) for x in piece])

    def get_seq_length(self) -> int:
        """Return the number of tokens of a row plus those of the branches so far."""
        if self.branches_in_rows:
            return self.keys.shape[2] + sum(keys.shape[2] for keys, _ in self.pieces)
        return self.keys.shape[2] + self.n_steps * self.shape[1] * self.shape[2]


class BranchCache(DynamicCache):
    """Keys and values of the base tokens, and of the branch tokens so far.

    It shares the tensors of the base pass without copying or changing them, so dropping it restores the base pass.

    Args:
        base: cache of a base pass, with dynamic or sliding layers.
        grid: where branches grow, in as many passes as the next tokens have; see `repeat`.
        branches_in_rows: see BranchLayer.
        rows: the rows of `base` that the grid contains.
        room: see BranchLayer.

    Raises:
        SettingsError: a layer's sliding window has dropped keys that a branch needs.
    """

    def __init__(
        self, base: Cache, grid: ThoughtGrid, *, branches_in_rows: bool, rows: slice = slice(None), room: int = 0
    ) -> None:
        super().__init__()
        S = grid.n_base
        self.layers = [
            BranchLayer(layer.keys[rows, :, :S], layer.values[rows, :, :S], grid, branches_in_rows, room)
            for layer in base.layers
        ]
        self.n_base_kept = [layer.keys.shape[2] for layer in self.layers]
        """base tokens that each layer still has: fewer than S if a sliding window has dropped some"""
        has_dropped = min(self.n_base_kept, default=grid.n_base) < grid.n_base
        if has_dropped and bool((grid.columns < grid.n_base - 1).any()):
            raise SettingsError(
                "thinking at positions before the last one needs keys that this sliding-window cache has dropped; "
                "pass cache=DynamicCache() without a config, or logits_to_keep=1 (assisted generation thinks at "
                "several positions)"
            )

    def repeat(self, n_passes: int) -> None:
        """Repeat the branch tokens so far, computed once because all passes share them, for each of the passes."""
        for layer in self.layers:
            layer.repeat(n_passes)
