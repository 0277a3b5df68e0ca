"""The dense backend: additive 4-D masks as large as the grid. The other backends are tested against it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quietstar.attention.cache import BranchCache
from quietstar.attention.windows import LayerWindows
from quietstar.grid import ThoughtGrid


class DenseAttention:
    """Additive 4-D masks [B, 1, query, key], for any base model that accepts them.

    Raises:
        UnsupportedModelError: a layer has a type that masks cannot describe.
    """

    name = "dense"
    branches_in_rows = True

    def __init__(self, base_lm: PreTrainedModel) -> None:
        self.windows = LayerWindows(base_lm.config.get_text_config())

    def attending(self, base_lm: PreTrainedModel) -> AbstractContextManager[None]:
        """See AttentionBackend."""
        return nullcontext()

    def pass_kwargs(self, grid: ThoughtGrid, steps: range, cache: BranchCache, dtype: torch.dtype) -> dict[str, Any]:
        """See AttentionBackend."""

        def mask(layer: int) -> Tensor:
            return branch_mask(grid, steps, self.windows.of(layer), cache.n_base_kept[layer], dtype)

        return {"attention_mask": self.windows.masks(mask)}


def branch_mask(grid: ThoughtGrid, steps: range, window: int | None, n_kept: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [B, 1, Q x P x N, n_kept + steps.stop x P x N] of some steps.

    Its keys are the last n_kept base tokens and the branches, row by row.
    """
    return additive(grid.sees(steps, window)[..., grid.n_base - n_kept :], dtype)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [B, 1, Q, T] of the keys seen, [B, Q, T]: 0, or the dtype's lowest value.

    It is not boolean because eager attention adds its mask to the scores, whatever the dtype.
    """
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
