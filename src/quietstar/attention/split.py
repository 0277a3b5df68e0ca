"""The split backend: branch tokens attend to the base and to their own branch separately, without a grid-sized mask."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quietstar.attention.cache import BranchCache
from quietstar.attention.dense import branch_mask
from quietstar.attention.hook import NativeAttention, check_hook, hooked, no_mask, takes_softcap
from quietstar.attention.sight import Sight
from quietstar.attention.two_parts import two_part_attention
from quietstar.attention.windows import LayerWindows
from quietstar.grid import ThoughtGrid

logger = logging.getLogger(__name__)

FEW_BRANCHES = 16
"""up to this many branches in a row, a small dense mask and the base model's own attention are faster: in generation,
or for a short answer"""

SHORT_BRANCH = 64
"""as long as branches have up to this many tokens: the mask has all tokens of all branches of a row on both sides"""


@dataclass(slots=True)
class SplitOverGrid:
    """Attention of the layers in one pass of the trunk over a grid."""

    grid: ThoughtGrid
    steps: range
    windows: LayerWindows
    cache: BranchCache
    """everything before these steps"""
    few_branches: int
    """see FEW_BRANCHES"""
    _sights: dict[tuple[int | None, int], Sight] = field(default_factory=dict)
    _dense_masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def __call__(
        self, native: NativeAttention, module: nn.Module, query: Tensor, *_: Any, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the queries of branch tokens [1, H, Q x P x C, d]; return [1, Q x P x C, H, d'].

        The layer's keys and values, of these steps too, are in the cache.
        """
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        window, layer_cache = self.windows.of(layer), self.cache.layers[layer]
        prefix, pieces = (layer_cache.keys, layer_cache.values), layer_cache.own
        n_kept = prefix[0].shape[2]
        unsupported = unsupported_in_two_parts(how)
        if unsupported:
            _warn_of_dense(unsupported)
        is_small = self.steps.stop <= SHORT_BRANCH and self.grid.n_passes * max(self.grid.per_row) <= self.few_branches
        if unsupported or is_small:
            key_value = [
                torch.cat([base, *(self._to_rows(own.permute(0, 3, 2, 1, 4)) for own in branches)], dim=2)
                for base, *branches in zip(prefix, *pieces, strict=True)
            ]
            mask = self._dense_mask(window, n_kept, query.dtype)
            queries = query[0].unflatten(1, (len(self.steps), self.grid.n_passes, -1))
            out = native(module, self._to_rows(queries), *key_value, mask, **how)[0]  # [B, Q x P x N, H, d']
            by_step = out.unflatten(1, (len(self.steps), self.grid.n_passes, -1))
            return self.grid.from_rows(by_step, dim=2).flatten(0, 2)[None], None
        scores = {
            "scaling": how.get("scaling") or query.shape[-1] ** -0.5,
            "softcap": how.get("softcap") if takes_softcap(native) else None,
            "sinks": how.get("s_aux"),
        }
        return self.over_branches(window, query, prefix, pieces, scores), None

    def over_branches(
        self,
        window: int | None,
        query: Tensor,
        prefix: tuple[Tensor, Tensor],
        pieces: list[tuple[Tensor, Tensor]],
        scores: dict[str, Any],
    ) -> Tensor:
        """Attend with arguments as for `two_part_attention`, `scores` its keyword arguments; return its result."""
        return two_part_attention(query, prefix, pieces, self._sight(window, prefix[0].shape[2]), **scores)

    def _to_rows(self, by_step: Tensor) -> Tensor:
        """[x, l, P, C, d] -> [B, x, l x P x N, d]"""
        return self.grid.to_rows(by_step, dim=3).flatten(2, 4)

    def _dense_mask(self, window: int | None, n_kept: int, dtype: torch.dtype) -> Tensor:
        if (window, n_kept) not in self._dense_masks:
            self._dense_masks[window, n_kept] = branch_mask(self.grid, self.steps, window, n_kept, dtype)
        return self._dense_masks[window, n_kept]

    def _sight(self, window: int | None, n_kept: int) -> Sight:
        if (window, n_kept) not in self._sights:
            self._sights[window, n_kept] = Sight.over(self.grid, self.steps, window, n_kept)
        return self._sights[window, n_kept]


class SplitAttention:
    """Attention in two parts, in plain torch, for any device and any base model whose attention can be hooked.

    Raises:
        UnsupportedModelError: its attention cannot be hooked, or a layer has a type that masks cannot describe.
    """

    name = "split"
    branches_in_rows = False
    over_grid: type[SplitOverGrid] = SplitOverGrid

    def __init__(self, base_lm: PreTrainedModel) -> None:
        self.few_branches = FEW_BRANCHES
        self.windows = LayerWindows(base_lm.config.get_text_config())
        check_hook(base_lm)

    def attending(self, base_lm: PreTrainedModel) -> AbstractContextManager[None]:
        """See AttentionBackend."""
        return hooked(base_lm)

    def pass_kwargs(self, grid: ThoughtGrid, steps: range, cache: BranchCache, dtype: torch.dtype) -> dict[str, Any]:
        """See AttentionBackend."""
        unused = no_mask(grid.columns.device)
        attend_with = self.over_grid(grid, steps, self.windows, cache, self.few_branches)
        return {"attention_mask": self.windows.masks(lambda _: unused), "attend_with": attend_with}


def unsupported_in_two_parts(how: dict[str, Any]) -> str | None:
    """Return the name of a layer's attention feature that two parts do not support, or None."""
    if how.get("dropout"):
        return "attention dropout"
    return "a position bias" if how.get("position_bias") is not None else None


@cache
def _warn_of_dense(feature: str) -> None:
    logger.warning("%s is not supported in two parts: layers with it use dense masks, which is slower", feature)
