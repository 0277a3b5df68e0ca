"""Step 1, think: write a thought after each chosen position, all positions at once.

Legend: P passes, C columns of all rows together, K sampled tokens of a thought, D hidden size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quietstar.attention import BranchCache
from quietstar.base.trunk import Trunk
from quietstar.base.vocabulary import draw
from quietstar.grid import ThoughtGrid
from quietstar.heads import ThoughtEmbeddings


@dataclass(slots=True)
class Thoughts:
    """What think leaves behind for talk to go on from."""

    tokens: Tensor
    """[P, C, K]: sampled tokens."""
    logprob: Tensor
    """[P, C, K]: their log-probabilities in what they were drawn from, 0 where the likeliest was taken."""
    hidden: Tensor
    """[K, P, C, D]: state from which each token was sampled."""


def think(
    trunk: Trunk,
    grid: ThoughtGrid,
    cache: BranchCache,
    embeddings: ThoughtEmbeddings,
    *,
    n_tokens: int,
    temperature: float,
    suppressed: Tensor | None = None,
    generator: torch.Generator | None = None,
    top_p: float = 1.0,
) -> Thoughts:
    """Write a thought of K tokens at every column in K passes of one step each.

    Args:
        trunk: the base model.
        grid: where the branches grow.
        cache: keys and values of the base pass; those of the thoughts are appended.
        embeddings: start and end of a thought.
        n_tokens: K.
        temperature: 0 takes the likeliest token.
        suppressed: ids that a thought may not contain.
        generator: source of the random numbers, on the states' device.
        top_p: draw among the likeliest tokens that together reach this probability.
    """
    P, C = grid.n_passes, grid.n_columns
    embeds = embeddings.start.to(trunk.dtype).expand(1, 1, C, -1)
    tokens, logprob, hidden = [], [], [embeds[:0].expand(-1, P, -1, -1)]
    for step in range(n_tokens):
        # start is the same token in every pass: it goes through the trunk once
        passes = replace(grid, n_passes=1) if step == 0 else grid
        states = trunk.branch_pass(passes, range(step, step + 1), embeds, cache)
        n_draws = P if step == 0 else 1
        drawn = draw(trunk.head, states.flatten(0, -2), temperature, suppressed, generator, n_draws, top_p)
        if step == 0:
            cache.repeat(P)
            states, drawn = states.expand(-1, P, -1, -1), (drawn[0].T, drawn[1].T)
        hidden.append(states)
        tokens.append(drawn[0].reshape(P, C))
        logprob.append(drawn[1].reshape(P, C))
        embeds = trunk.embed(tokens[-1])[None]
    if not tokens:
        nothing = embeds.new_zeros(P, C, 0)
        return Thoughts(tokens=nothing.long(), logprob=nothing, hidden=torch.cat(hidden))
    return Thoughts(tokens=torch.stack(tokens, dim=-1), logprob=torch.stack(logprob, dim=-1), hidden=torch.cat(hidden))
