"""Step 2, talk: predictions after each thought, mixed with what the base model would have said without it.

Legend: B examples, Q last base tokens, P thoughts of each position, C columns of all rows together, L tokens of a
branch, K sampled tokens of a thought, M true tokens after each thought, D hidden size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from quietstar.attention import BranchCache
from quietstar.base.trunk import BasePass, Trunk
from quietstar.grid import ThoughtGrid
from quietstar.heads import mix
from quietstar.think import Thinker, Thoughts

SHARDED_PARTS = 4
"""parts in which branches are recomputed under gradient checkpointing where weights are sharded"""

TOKENS_AT_LEAST = 512
"""tokens of such a part, below which the passes of its columns stay together: tiny parts take longer"""


def n_parts(n_columns: int, n_passes: int, branch_length: int, n_layers: int, is_sharded: bool) -> tuple[int, int]:
    """Return the number of parts of the columns, and of the passes of each, under gradient checkpointing.

    There are twice as many parts as layers: what one part keeps in all layers while its gradient is computed is half of
    what all branches keep in one layer, however deep the model. With fewer columns, each is a part, and its passes are
    divided, too, if they are long. Where weights are sharded, each part gathers all of them again, so that there are
    SHARDED_PARTS, on every process.
    """
    if is_sharded:
        return SHARDED_PARTS, 1
    if n_columns >= 2 * n_layers:
        return 2 * n_layers, 1
    return max(1, n_columns), max(1, min(n_passes, n_passes * branch_length // TOKENS_AT_LEAST))


@dataclass(slots=True)
class Branches:
    """States along every branch."""

    h_sampled: Tensor
    """[P, C, K, D]: h from which each thought token is drawn (start, then all thought tokens but the last)."""
    h_thought: Tensor
    """[P, C, M, D]: h_k, at the end token and the true tokens after it."""
    end_logit: Tensor | None = None
    """[P, C, K]: logit of ending the thought in place of each token; None if all have K tokens."""


@dataclass(slots=True)
class Talk:
    """Predictions with the thoughts mixed in."""

    branches: Branches
    weight: Tensor
    """[P, C, M]: mixing weight w_k."""
    mixed: Tensor
    """[P, C, M, D]: mixed state; the LM head turns it into a prediction of true token i+1+k."""


def talk(thinker: Thinker, grid: ThoughtGrid, base: BasePass, thoughts: Thoughts) -> Talk:
    """Return the predictions after each thought, mixed with the base model's own; uses up the thoughts' cache."""
    hidden = grow_branches(thinker, grid, base, thoughts)
    branches = split_branches(hidden, thoughts)
    if thinker.end_head is not None:
        branches.end_logit = thinker.end_head(branches.h_sampled)
    return mix_branches(grid, thinker.mixing_head, base.h_base, branches)


def grow_branches(thinker: Thinker, grid: ThoughtGrid, base: BasePass, thoughts: Thoughts) -> Tensor:
    """Return states [L, P, C, D] along whole branches, continued from where think left them."""
    cache, grown = thoughts.cache, thoughts.hidden
    thoughts.cache = thoughts.hidden = None  # they are large, and nobody else needs them
    if thoughts.have_ended:
        embeds = ragged_embeds(thinker, grid, thoughts, base.embeds)
    else:
        embeds = branch_embeds(thinker, grid, thoughts.tokens, base.embeds, 0 if grown is None else len(grown))
    if thinker.trunk.grows_in_parts:
        return branches_in_parts(thinker.trunk, grid, base.cache, embeds)
    if cache is None:
        cache = thinker.trunk.branch_cache(base.cache, grid)
    return finish_branches(thinker.trunk, grid, embeds, cache, grown)


def branch_embeds(
    thinker: Thinker, grid: ThoughtGrid, thoughts: Tensor, base_embeds: Tensor, n_grown: int = 0
) -> Tensor:
    """Return embeddings [L - n_grown, P, C, D] of branches: start, thought, end, true tokens.

    Args:
        thinker: the model's parts, for their embeddings.
        grid: where the branches grow.
        thoughts: [P, C, K]
        base_embeds: [B, Q, D], of the last Q base tokens.
        n_grown: first steps to leave out because think has run them: 0 or K.
    """
    P, C, K = thoughts.shape
    ends = (thinker.embeddings.start, thinker.embeddings.end)
    start, end = (vector.to(base_embeds.dtype).expand(1, P, C, -1) for vector in ends)
    # the first n_grown steps are start and n_grown - 1 sampled tokens
    sampled = thinker.trunk.embed(thoughts[..., max(n_grown - 1, 0) :].permute(2, 0, 1))  # [K or 1, P, C, D]
    n_true = grid.branch_length - (K + 2)
    truth = [grid.gather_columns(base_embeds, ahead).expand(1, P, -1, -1) for ahead in range(1, n_true + 1)]
    return torch.cat([start, sampled, end, *truth] if n_grown == 0 else [sampled, end, *truth])


def ragged_embeds(thinker: Thinker, grid: ThoughtGrid, thoughts: Thoughts, base_embeds: Tensor) -> Tensor:
    """Return `branch_embeds` [L, P, C, D] of thoughts that end at different steps, zero after a branch's last token."""
    tokens, L = thoughts.tokens, grid.branch_length
    K, step = tokens.shape[-1], torch.arange(L, device=tokens.device)[:, None, None]
    end_step = 1 + thoughts.lengths  # [P, C]
    start, end = (x.to(base_embeds.dtype) for x in (thinker.embeddings.start, thinker.embeddings.end))
    sampled = thinker.trunk.embed(tokens.clamp(min=0).permute(2, 0, 1))  # [K, P, C, D]
    embeds = torch.cat([start.expand(1, *sampled.shape[1:]), sampled, sampled.new_zeros(L - K - 1, *sampled.shape[1:])])
    embeds = torch.where((step < end_step)[..., None], embeds, 0.0)
    embeds = torch.where((step == end_step)[..., None], end, embeds)
    for ahead in range(1, L - K - 1):
        truth = grid.gather_columns(base_embeds, ahead)
        embeds = torch.where((step == end_step + ahead)[..., None], truth, embeds)
    return embeds


def finish_branches(
    trunk: Trunk, grid: ThoughtGrid, embeds: Tensor, cache: BranchCache, grown: Tensor | None = None
) -> Tensor:
    """Return states [L, P, C, D] along whole branches, from embeddings [L - n_grown, P, C, D] of the remaining steps.

    `grown` are the states [n_grown, P, C, D] of the first steps if think has run them. The cache is that of the base
    pass and of these steps.
    """
    n_grown = 0 if grown is None else len(grown)
    hidden = trunk.branch_pass(grid, range(n_grown, grid.branch_length), embeds, cache)
    return hidden if grown is None else torch.cat([grown, hidden])


def branches_in_parts(trunk: Trunk, grid: ThoughtGrid, cache: Cache, embeds: Tensor) -> Tensor:
    """Return states along whole branches from their embeddings, both [L, P, C, D], over the cache of a base pass.

    Each part (`n_parts`) is recomputed for its gradient.
    """

    def states(part: ThoughtGrid, rows: slice, embeds: Tensor) -> Tensor:
        return finish_branches(trunk, part, embeds, trunk.branch_cache(cache, part, rows))

    n, n_groups = n_parts(grid.n_columns, grid.n_passes, grid.branch_length, len(cache.layers), trunk.is_sharded)
    parts = []
    for columns, rows, part in grid.parts(n):
        some = [
            checkpoint(states, replace(part, n_passes=each.shape[1]), rows, each, use_reentrant=False)
            for each in embeds[:, :, columns].tensor_split(n_groups, dim=1)
        ]
        parts.append(torch.cat(some, dim=1))
    if not parts:
        return embeds
    hidden, C = torch.cat(parts, dim=2), grid.n_columns
    # columns that were computed several times stay in the graph, so that every process runs their backward passes
    return hidden[:, :, :C] + 0 * hidden[:, :, C:].sum(dim=2, keepdim=True) if hidden.shape[2] > C else hidden


def split_branches(hidden: Tensor, thoughts: Thoughts) -> Branches:
    """Split states [L, P, C, D] of whole branches into those that sample (the first K) and those that predict."""
    by_column, K = hidden.permute(1, 2, 0, 3), thoughts.tokens.shape[-1]
    h_sampled, h_thought = by_column[..., :K, :], by_column[..., K + 1 :, :]
    if thoughts.have_ended:
        at = thoughts.lengths[..., None] + 1 + torch.arange(len(hidden) - K - 1, device=hidden.device)  # [P, C, M]
        h_thought = by_column.gather(2, at[..., None].expand(-1, -1, -1, hidden.shape[-1]))
    return Branches(h_sampled=h_sampled, h_thought=h_thought)


def mix_branches(grid: ThoughtGrid, mixing_head: nn.Module, h_base: Tensor, branches: Branches) -> Talk:
    """Mix each prediction after a thought with the base model's own of the same token, from h_base [B, Q, D]."""
    h_thought = branches.h_thought
    M = h_thought.shape[2]
    without = torch.stack([grid.gather_columns(h_base, k) for k in range(M)], dim=1).expand_as(h_thought)
    weight = mixing_head(without, h_thought)
    return Talk(branches, weight.squeeze(-1), mix(without, h_thought, weight))


def mixed_states(grid: ThoughtGrid, h_base: Tensor, said: Talk) -> Tensor:
    """Return [B, Q, D] for the last Q base tokens: mixed where there is a thought (the first pass), else h_base."""
    columns = grid.columns - (grid.n_base - h_base.shape[1])
    return h_base.index_put((grid.rows, columns), said.mixed[0, :, 0])
