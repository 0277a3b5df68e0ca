"""Step 2, talk: predictions after each thought, mixed with what the base model would have said without it.

Legend: B examples, Q last base tokens, P thoughts of each position, C columns of all rows together, L tokens of a
branch, K sampled tokens of a thought, M true tokens after each thought, D hidden size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    """Return into how many parts columns, and passes of each of them, are divided under gradient checkpointing.

    There are up to twice as many parts of columns as layers: what one part keeps in all layers while its gradient is
    computed is half of what all branches keep in one layer, however deep the model. Long branches are divided further.
    Where weights are sharded, each part gathers all of them again, so that there are SHARDED_PARTS, on every process.
    """
    if is_sharded:
        return SHARDED_PARTS, 1
    of_columns = max(1, min(2 * n_layers, n_columns))
    largest = -(-n_columns // of_columns) * n_passes * branch_length
    return of_columns, max(1, min(n_passes, largest // TOKENS_AT_LEAST))


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

    branches: Branches
    weight: Tensor
    """[P, C, M]: mixing weight w_k."""
    mixed: Tensor
    """[P, C, M, D]: mixed state; the LM head turns it into a prediction of true token i+1+k."""


def talk(thinker: Thinker, grid: ThoughtGrid, base: BasePass, thoughts: Thoughts) -> Talk:
    """Return the predictions after each thought, mixed with the base model's own; uses up the thoughts' cache."""
    hidden = grow_branches(thinker, grid, base, thoughts)
    branches = split_branches(hidden, thoughts.tokens.shape[-1])
    return mix_branches(grid, thinker.mixing_head, base.h_base, branches)


def grow_branches(thinker: Thinker, grid: ThoughtGrid, base: BasePass, thoughts: Thoughts) -> Tensor:
    """Return states [L, P, C, D] along whole branches, continued from where think left them."""
    cache, grown = thoughts.cache, thoughts.hidden
    thoughts.cache = thoughts.hidden = None  # they are large, and nobody else needs them
    if thinker.trunk.grows_in_parts:
        return branches_in_parts(thinker, grid, base, thoughts.tokens)
    if cache is None:
        cache = thinker.trunk.branch_cache(base.cache, grid)
    embeds = branch_embeds(thinker, grid, thoughts.tokens, base.embeds, 0 if grown is None else len(grown))
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


def branches_in_parts(thinker: Thinker, grid: ThoughtGrid, base: BasePass, thoughts: Tensor) -> Tensor:
    """Return states [L, P, C, D] along whole branches, a part at a time (`n_parts`), recomputed for its gradient."""
    trunk, cache, P = thinker.trunk, base.cache, grid.n_passes
    embeds = branch_embeds(thinker, grid, thoughts, base.embeds)

    def states(part: ThoughtGrid, rows: slice, embeds: Tensor) -> Tensor:
        return finish_branches(trunk, part, embeds, trunk.branch_cache(cache, part, rows))

    n, n_groups = n_parts(grid.n_columns, P, grid.branch_length, len(cache.layers), trunk.is_sharded)
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


def split_branches(hidden: Tensor, n_thought_tokens: int) -> Branches:
    """Split states [L, P, C, D] of whole branches into those that sample (the first K) and those that predict."""
    by_column = hidden.permute(1, 2, 0, 3)
    K = n_thought_tokens
    return Branches(h_sampled=by_column[..., :K, :], h_thought=by_column[..., K + 1 :, :])


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
