"""Keys and values of a base pass, and of the branches that grow on it."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid


class BranchLayer(DynamicLayer):
    """One layer's keys and values: those of the base tokens, and a piece for each pass over branch tokens.

    Args:
        keys: [B, J, S, d]
        values: [B, J, S, d']
        branches_in_rows: see AttentionBackend. If True, `update` returns all keys and values so far in one tensor, as
            the base model's own attention needs them; if False, only the new ones.
    """

    def __init__(self, keys: Tensor, values: Tensor, branches_in_rows: bool) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.branches_in_rows = branches_in_rows
        self.pieces: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of some steps of all branches."""
        self.pieces.append((key_states, value_states))
        if not self.branches_in_rows:
            return key_states, value_states
        keys, values = zip(*self.pieces, strict=True)
        return torch.cat([self.keys, *keys], dim=2), torch.cat([self.values, *values], dim=2)

    def repeat(self, n_passes: int) -> None:
        """See BranchCache."""
        self.pieces = [tuple(x.repeat(1, 1, n_passes, 1) for x in piece) for piece in self.pieces]  # type: ignore[misc]

    def get_seq_length(self) -> int:
        """Return the number of tokens of a row plus those of the branches so far."""
        return self.keys.shape[2] + sum(keys.shape[2] for keys, _ in self.pieces)


class BranchCache(DynamicCache):
    """Keys and values of the base tokens, and of the branch tokens so far.

    It shares the tensors of the base pass without copying or changing them, so dropping it restores the base pass.

    Args:
        base: cache of a base pass, with dynamic or sliding layers.
        grid: where branches grow.
        branches_in_rows: see BranchLayer.
        rows: the rows of `base` that the grid contains.

    Raises:
        SettingsError: a layer's sliding window has dropped keys that a branch needs.
    """

    def __init__(self, base: Cache, grid: ThoughtGrid, *, branches_in_rows: bool, rows: slice = slice(None)) -> None:
        super().__init__()
        S = grid.n_base
        self.layers = [
            BranchLayer(layer.keys[rows, :, :S], layer.values[rows, :, :S], branches_in_rows) for layer in base.layers
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
