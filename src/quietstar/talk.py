"""Step 2, talk: predictions after each thought, mixed with what the base model would have said without it.

Legend: B examples, Q last base tokens, P passes, C columns of all rows together, L tokens of a branch, K sampled
tokens of a thought, M true tokens after each thought, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from quietstar.attention import BranchCache
from quietstar.base.trunk import Trunk
from quietstar.grid import ThoughtGrid
from quietstar.heads import MixingHead, ThoughtEmbeddings, mix

SHARDED_PARTS = 4
"""parts in which branches are made under gradient checkpointing where weights are sharded"""


@dataclass(slots=True)
class Branches:
    """States along every branch."""

    h_sampled: Tensor
    """[P, C, K, D]: h from which each thought token is drawn (start, then all thought tokens but the last)."""
    h_thought: Tensor
    """[P, C, M, D]: h_k, at the end token and the true tokens after it."""


@dataclass(slots=True)
class Talk:
    """Predictions with the thoughts mixed in."""

    weight: Tensor
    """[P, C, M]: mixing weight w_k."""
    mixed: Tensor
    """[P, C, M, D]: mixed state; the LM head makes it a prediction of true token i+1+k."""


def branch_embeds(
    trunk: Trunk,
    grid: ThoughtGrid,
    embeddings: ThoughtEmbeddings,
    thoughts: Tensor,
    base_embeds: Tensor,
    n_ahead_talk: int,
    n_grown: int = 0,
) -> Tensor:
    """Embeddings of branches: start, thought, end, true tokens.

    Args:
        trunk: the base model, for its token embeddings.
        grid: where the branches grow.
        embeddings: start and end of a thought.
        thoughts: [P, C, K]
        base_embeds: [B, Q, D], of the last Q base tokens.
        n_ahead_talk: M.
        n_grown: steps that are left out at the start, as think has been through them: 0 or K.

    Returns:
        [L - n_grown, P, C, D]
    """
    P, C, _ = thoughts.shape
    start, end = (of.to(base_embeds.dtype).expand(1, P, C, -1) for of in (embeddings.start, embeddings.end))
    words = trunk.embed(thoughts[..., max(n_grown - 1, 0) :].permute(2, 0, 1))  # [K or 1, P, C, D]
    truth = [grid.gather_columns(base_embeds, ahead).expand(1, P, -1, -1) for ahead in range(1, n_ahead_talk)]
    return torch.cat([start, words, end, *truth] if n_grown == 0 else [words, end, *truth])


def finish_branches(
    trunk: Trunk, grid: ThoughtGrid, embeds: Tensor, cache: BranchCache, grown: Tensor | None = None
) -> Tensor:
    """States along whole branches, over cached keys and values.

    Args:
        trunk: the base model.
        grid: where the branches grow.
        embeds: [L - n_grown, P, C, D] of the steps that are left.
        cache: of the base pass, and of the steps that `grown` has.
        grown: [n_grown, P, C, D], states of the first steps where think has made them already.

    Returns:
        [L, P, C, D]
    """
    n_grown = 0 if grown is None else len(grown)
    hidden = trunk.branch_pass(grid, range(n_grown, grid.branch_length), embeds, cache)
    return hidden if grown is None else torch.cat([grown, hidden])


def branches_in_parts(
    trunk: Trunk,
    grid: ThoughtGrid,
    embeddings: ThoughtEmbeddings,
    thoughts: Tensor,
    base_embeds: Tensor,
    n_ahead_talk: int,
    cache: Cache,
) -> Tensor:
    """States along whole branches, some columns at a time, each part made again for its gradient.

    There are twice as many parts as layers, so that what a part keeps in all layers while its gradient is made is
    half of what all branches keep in one layer, however deep the model. Where weights are sharded, each part gathers
    all of them anew: there are SHARDED_PARTS, on every process.

    Args:
        trunk: the base model.
        grid: where the branches grow.
        embeddings: start and end of a thought.
        thoughts: [P, C, K]
        base_embeds: [B, Q, D], of the last Q base tokens.
        n_ahead_talk: M.
        cache: of the base pass.

    Returns:
        [L, P, C, D]
    """
    embeds = branch_embeds(trunk, grid, embeddings, thoughts, base_embeds, n_ahead_talk)

    def states(part: ThoughtGrid, rows: slice, embeds: Tensor) -> Tensor:
        with trunk.keeping_caches():
            return finish_branches(trunk, part, embeds, trunk.branch_cache(cache, part, rows))

    n_parts = SHARDED_PARTS if trunk.is_sharded else min(2 * len(cache.layers), grid.n_columns)
    parts = [
        checkpoint(states, part, rows, embeds[:, :, some], use_reentrant=False)
        for some, rows, part in grid.parts(n_parts)
    ]
    if not parts:
        return embeds
    made, C = torch.cat(parts, dim=2), grid.n_columns
    # columns that were made several times stay in the graph: their backward passes are made on every process
    return made[:, :, :C] + 0 * made[:, :, C:].sum(dim=2, keepdim=True) if made.shape[2] > C else made


def split_branches(hidden: Tensor, n_thought_tokens: int) -> Branches:
    """[L, P, C, D] states of whole branches -> those that sample (the first K) and those that predict."""
    by_column = hidden.permute(1, 2, 0, 3)
    K = n_thought_tokens
    return Branches(h_sampled=by_column[..., :K, :], h_thought=by_column[..., K + 1 :, :])


def talk(grid: ThoughtGrid, mixing_head: MixingHead, h_base: Tensor, h_thought: Tensor) -> Talk:
    """Mix each prediction after a thought with the base model's own prediction of the same token.

    Args:
        grid: where the branches grow.
        mixing_head: says how much the thought counts.
        h_base: [B, Q, D], of the last Q base tokens.
        h_thought: [P, C, M, D]
    """
    M = h_thought.shape[2]
    without = torch.stack([grid.gather_columns(h_base, k) for k in range(M)], dim=1).expand_as(h_thought)
    weight = mixing_head(without, h_thought)
    return Talk(weight=weight.squeeze(-1), mixed=mix(without, h_thought, weight))


def mixed_states(grid: ThoughtGrid, h_base: Tensor, said: Talk) -> Tensor:
    """[B, Q, D] for the last Q base tokens: mixed where a thought was written (the first pass), h_base elsewhere."""
    columns = grid.columns - (grid.n_base - h_base.shape[1])
    return h_base.index_put((grid.rows, columns), said.mixed[0, :, 0])
