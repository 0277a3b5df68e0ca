"""The flex backend: torch's flex attention over branches side by side, in one kernel for CUDA devices.

A branch token sees two runs of keys: base tokens up to its column, and its own branch up to itself. Branch tokens are
ordered by step; here they are reordered by branch, so that both runs are short, and 128 x 128 blocks of scores that
are fully masked are never computed:

    keys       base tokens of row 0 | of row 1 | ..., padded to whole blocks | branch 0 | branch 1 | ...
    queries    branch 0 | branch 1 | ..., padded to whole blocks

Whole blocks keep every index of the kernel within its tables, let many lengths share one compiled kernel, and avoid
torch's separate kernel for short queries, which supports fewer head sizes and groups.

Legend: B rows of text, H heads, J key-value heads, Q steps of P passes of C columns, S base tokens whose keys are
kept, L steps of the branches so far, R and T queries and keys in whole blocks, d head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import PreTrainedModel

from quietstar.attention.split import SplitAttention, SplitOverGrid
from quietstar.attention.two_parts import products_dtype
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid

BLOCK = 128
"""queries, and keys, in a block: flex attention's own default"""

LEAST_HEAD_SIZE = 16
"""smallest head size of flex attention's kernels; smaller heads are padded with zeros"""

COMPILATION = {"recompile_limit": 64, "specialize_float": True}
"""settings of torch's compiler. Kernels for one or several blocks, each dtype, with and without gradient, and each kind
of head are more than its default limit of 8. Scale and softcap must be constants of a kernel."""


@dataclass(slots=True)
class FlexOverGrid(SplitOverGrid):
    """Attention of the layers in one pass of the trunk over a grid."""

    _block_masks: dict[tuple[int | None, int], BlockMask] = field(default_factory=dict)

    def over_branches(
        self,
        window: int | None,
        query: Tensor,
        prefix: tuple[Tensor, Tensor],
        pieces: list[tuple[Tensor, Tensor]],
        scores: dict[str, Any],
    ) -> Tensor:
        """See SplitOverGrid.

        Raises:
            SettingsError: the tensors are not on a CUDA device.
        """
        _check_device(query.device, "the tensors are")
        return flex_over_branches(
            query,
            prefix,
            pieces,
            self._block_mask(window, prefix[0].shape[2]),
            (self.grid.n_passes, self.grid.n_columns),
            **scores,
        )

    def _block_mask(self, window: int | None, n_kept: int) -> BlockMask:
        if (window, n_kept) not in self._block_masks:
            self._block_masks[window, n_kept] = branch_block_mask(self.grid, self.steps, window, n_kept)
        return self._block_masks[window, n_kept]


class FlexAttention(SplitAttention):
    """Flex attention, for base models on CUDA devices whose attention can be hooked.

    A few branches, and layers with attention dropout or a position bias, attend as with SplitAttention.

    Raises:
        SettingsError: the base model is not on a CUDA device.
        UnsupportedModelError: its attention cannot be hooked, or a layer has a type that masks cannot describe.
    """

    name = "flex"
    over_grid = FlexOverGrid

    def __init__(self, base_lm: PreTrainedModel) -> None:
        _check_device(base_lm.device, "the model is")
        super().__init__(base_lm)


def flex_over_branches(
    query: Tensor,
    prefix: tuple[Tensor, Tensor],
    pieces: list[tuple[Tensor, Tensor]],
    block_mask: BlockMask,
    branches: tuple[int, int],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return [1, Q x P x C, H, d']: the attention of branch tokens to the base and to their own branches.

    Args:
        query: [1, H, Q x P x C, d], step by step.
        prefix: keys [B, J, S, d] and values [B, J, S, d'] of the base tokens.
        pieces: keys [J, C, P, l, d] and values of the branch tokens, some steps l in each piece, L in all.
        block_mask: the keys that are seen; see branch_block_mask.
        branches: P and C.
        scaling: factor of the scores.
        softcap: scores are squashed to stay within it.
        sinks: [H], for each head a score that enters the softmax and has no value.
    """
    n_queries, size = query.shape[2], prefix[1].shape[3]
    attend, dtype = _flex_attention(query.is_cuda), products_dtype(query)
    with torch.autocast(query.device.type, enabled=False), torch._dynamo.config.patch(COMPILATION):
        branch_keys, branch_values = (torch.cat(each, dim=3) for each in zip(*pieces, strict=True))
        out, aux = attend(
            _in_blocks(query.to(dtype).unflatten(2, (-1, *branches)).permute(0, 1, 3, 4, 2, 5).flatten(2, 4)),
            _keys_in_blocks(prefix[0], branch_keys, dtype),
            _keys_in_blocks(prefix[1], branch_values, dtype),
            score_mod=None if softcap is None else _softcap(softcap),
            block_mask=block_mask,
            scale=scaling,
            enable_gqa=True,
            return_aux=AuxRequest(lse=sinks is not None),
        )
        out = out[:, :, :n_queries, :size]
        if sinks is not None:
            # share of the softmax outside the sink
            share = torch.sigmoid(aux.lse[:, :, :n_queries] - sinks.float()[:, None])
            out = (out * share[..., None]).to(query.dtype)
    return out.unflatten(2, (*branches, -1)).permute(0, 4, 2, 3, 1, 5).flatten(1, 3)


def branch_block_mask(grid: ThoughtGrid, steps: range, window: int | None, n_kept: int) -> BlockMask:
    """Return the block mask of some steps of all branches: [1, 1, R, T] in blocks, never materialized as a whole.

    Args:
        grid: where the branches grow.
        steps: Q steps, the last of them L - 1.
        window: the sliding window; None for full attention.
        n_kept: S, the number of base tokens, the last ones, whose keys are kept.
    """
    P, C, Q, L, S = grid.n_passes, grid.n_columns, len(steps), steps.stop, n_kept
    first_own = _whole_blocks(grid.batch_size * S)
    R, T = _whole_blocks(Q * P * C), first_own + _whole_blocks(L * P * C)
    device, n_dropped = grid.columns.device, grid.n_base - S

    def runs(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Expand the bounds [P or 1, C, Q or 1] of the keys that each query sees to [R]; padding sees none."""
        start, stop = (pad(bound.expand(P, -1, Q).flatten(), (0, R - Q * P * C)).int() for bound in (start, stop))
        return start.where(start < stop, T), stop.where(start < stop, 0)

    ahead = torch.arange(steps.start + 1, steps.stop + 1, device=device)
    column, text = grid.columns[None, :, None], (grid.rows * S)[None, :, None]
    since = torch.zeros_like(column) if window is None else (column + ahead - window + 1 - n_dropped).clamp(min=0)
    until = torch.maximum(column + 1 - n_dropped, since)
    base_start, base_stop = runs(text + since, text + until)
    base_seen = pad(grid.base_mask[:, n_dropped:].flatten(), (0, T - grid.batch_size * S))  # [T]

    own_seen = grid.sees_own_branch(steps, window).permute(2, 0, 1)[None]  # [1, C, Q, L], one run each
    branch = torch.arange(P * C, device=device).view(P, C, 1)
    from_here = first_own + branch * L + own_seen.int().argmax(-1)  # [P, C, Q]
    own_start, own_stop = runs(from_here, from_here + own_seen.sum(-1))

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        in_base = (k >= base_start[q]) & (k < base_stop[q]) & base_seen[k]
        return in_base | ((k >= own_start[q]) & (k < own_stop[q]))

    block = torch.arange(0, T, BLOCK, device=device)

    def touched(start: Tensor, stop: Tensor) -> Tensor:
        """Return the blocks [R / BLOCK, T / BLOCK] that may have unmasked scores."""
        first, last = _by_block(start).amin(-1, keepdim=True), _by_block(stop).amax(-1, keepdim=True)
        return (first < block + BLOCK) & (last > block)

    seen_by_all = _by_block(base_start).amax(-1, keepdim=True) <= block
    seen_by_all &= _by_block(base_stop).amin(-1, keepdim=True) >= block + BLOCK
    full = seen_by_all & _by_block(base_seen).all(-1)
    partial = (touched(base_start, base_stop) | touched(own_start, own_stop)) & ~full
    return BlockMask.from_kv_blocks(
        *_indices(partial), *_indices(full), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(R, T)
    )


def _check_device(device: torch.device, what: str) -> None:
    if device.type != "cuda":
        raise SettingsError(
            f"attention backend 'flex' runs on CUDA devices only, but {what} on {device.type}; move the model first, "
            "or choose split"
        )


@cache
def _flex_attention(on_cuda: bool) -> Callable[..., Any]:
    # a full graph makes too many variants an error; without it, torch falls back to scores as large as the grid
    return torch.compile(flex_attention, fullgraph=True) if on_cuda else flex_attention  # type: ignore[return-value]


@cache
def _softcap(softcap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def _whole_blocks(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


def _by_block(values: Tensor) -> Tensor:
    """Reshape [n x BLOCK] to [n, BLOCK]."""
    return values.unflatten(0, (-1, BLOCK))


def _indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of a mask of blocks [R / BLOCK, T / BLOCK] their number, and their indices, padded."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int()[None, None], order.int()[None, None]


def _in_blocks(tokens: Tensor) -> Tensor:
    """Pad [1, H, n, d] to whole blocks of tokens and to the smallest head size."""
    n, size = tokens.shape[2:]
    return pad(tokens, (0, max(0, LEAST_HEAD_SIZE - size), 0, _whole_blocks(n) - n))


def _keys_in_blocks(base: Tensor, own: Tensor, dtype: torch.dtype) -> Tensor:
    """Join keys or values of the base, [B, J, S, d], and of branches, [J, C, P, L, d], to [1, J, T, d]."""
    texts, branches = base.transpose(0, 1).flatten(1, 2), own.transpose(1, 2).flatten(1, 3)
    return torch.cat([_in_blocks(each[None].to(dtype)) for each in (texts, branches)], dim=2)
