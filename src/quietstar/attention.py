"""How the base model attends over a thought grid: one backend behind one small interface.

A backend turns a ThoughtGrid into keyword arguments for the base model's trunk. `dense` builds additive 4-D
masks, works with any model that takes them, and is the yardstick of correctness for every other backend.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from quietstar.errors import SettingsError, UnsupportedModelError
from quietstar.grid import ThoughtGrid

WINDOWED = "sliding_attention"
FULL = "full_attention"


class BranchCache(DynamicCache):
    """Keys and values of the base tokens, followed by those of the branch tokens grown so far.

    It starts from the base pass's own tensors without copying or changing them: dropping it is all that is
    needed to go back to the base pass.

    Args:
        base: cache of a base pass, its layers dynamic, sliding or static.
        grid: where branches grow.

    Raises:
        SettingsError: a layer's window has moved past what a branch sees.
    """

    def __init__(self, base: Cache, grid: ThoughtGrid) -> None:
        super().__init__()
        self.layers = []
        for layer in base.layers:
            own = DynamicLayer()
            if layer.is_initialized:
                own.lazy_initialization(layer.keys, layer.values)
                own.keys, own.values = layer.keys[..., : grid.n_base, :], layer.values[..., : grid.n_base, :]
            self.layers.append(own)
        self.n_base_kept = [layer.get_seq_length() for layer in self.layers]
        """base tokens that each layer still keeps: fewer than S where a window has moved on"""
        moved_on = min(self.n_base_kept, default=grid.n_base) < grid.n_base
        if moved_on and bool((grid.is_column & (grid.columns < grid.n_base - 1)).any()):
            raise SettingsError(
                "thinking at earlier positions than the last needs keys that this sliding-window cache has "
                "dropped; pass past_key_values=DynamicCache() without a config, or logits_to_keep=1"
            )


class AttentionBackend(Protocol):
    """What think and talk ask of a backend: keyword arguments for the trunk that make it see the grid."""

    def whole(self, grid: ThoughtGrid, dtype: torch.dtype) -> dict[str, Any]:
        """For base tokens and all branches in one pass, nothing cached."""
        ...

    def steps(self, grid: ThoughtGrid, steps: range, cache: BranchCache, dtype: torch.dtype) -> dict[str, Any]:
        """For some steps of all branches over the keys and values of everything before them."""
        ...


class DenseAttention:
    """Additive 4-D masks [B, 1, query, key]: 0 where a token is seen, the dtype's lowest value elsewhere.

    Args:
        config: the base model's text config. Models with `layer_types` get a dictionary of masks.

    Raises:
        UnsupportedModelError: a layer is of a kind that no mask can describe (recurrent, chunked).
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.layer_types: list[str] | None = getattr(config, "layer_types", None)
        self.window: int | None = getattr(config, "sliding_window", None)
        strange = sorted(set(self.layer_types or []) - {FULL, WINDOWED})
        if strange:
            raise UnsupportedModelError(
                f"{config.model_type} has layers of type {', '.join(strange)}; branches need layers of type "
                f"{FULL} or {WINDOWED}: choose another base model"
            )

    def whole(self, grid: ThoughtGrid, dtype: torch.dtype) -> dict[str, Any]:
        """See AttentionBackend."""
        return self._masks(lambda window, _: additive(grid.whole_sight(window), dtype))

    def steps(self, grid: ThoughtGrid, steps: range, cache: BranchCache, dtype: torch.dtype) -> dict[str, Any]:
        """See AttentionBackend."""

        def mask(window: int | None, layer: int) -> Tensor:
            forgotten = grid.n_base - cache.n_base_kept[layer]
            return additive(grid.branch_sight(steps, window)[..., forgotten:], dtype)

        return self._masks(mask)

    def _masks(self, mask: Callable[[int | None, int], Tensor]) -> dict[str, Any]:
        if self.layer_types is None:
            return {"attention_mask": mask(self.window, 0)}
        windows = {FULL: None, WINDOWED: self.window}
        kinds = dict.fromkeys(self.layer_types)
        return {"attention_mask": {kind: mask(windows[kind], self.layer_types.index(kind)) for kind in kinds}}


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, Q, T] what is seen -> [B, 1, Q, T] what is added to attention scores.

    Additive, because eager attention adds whatever it is given, booleans too.
    """
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


BACKENDS: dict[str, Callable[[PreTrainedConfig], AttentionBackend]] = {"dense": DenseAttention}


def attention_backend(name: str, config: PreTrainedConfig) -> AttentionBackend:
    """The backend of that name for a base model's text config.

    Raises:
        SettingsError: there is no such backend.
        UnsupportedModelError: the backend cannot serve the base model.
    """
    if name not in BACKENDS:
        raise SettingsError(f"attention backend {name!r} is unknown; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name](config)
