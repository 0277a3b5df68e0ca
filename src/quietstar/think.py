"""Step 1, think: write a thought after each chosen position, all positions at once, without gradient.

Legend: B examples, S base tokens, P passes, N columns, K sampled tokens of a thought, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quietstar.attention import BranchCache
from quietstar.grid import ThoughtGrid
from quietstar.heads import ThoughtEmbeddings
from quietstar.trunk import Trunk

ROWS_AT_ONCE = 2048
"""states turned into logits at once, so that sampling never holds [tokens, V] for all columns"""


@dataclass(slots=True)
class Thoughts:
    """What think leaves behind for talk to go on from."""

    tokens: Tensor
    """[B, P, N, K]: sampled tokens."""
    hidden: Tensor
    """[B, K, P, N, D]: state from which each token was sampled."""
    cache: BranchCache
    """Keys and values of the base, of start, and of all sampled tokens but the last (K steps)."""


@torch.no_grad()
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
    """
    B, P, N = grid.batch_size, grid.n_passes, grid.n_columns

    def sample(hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1]).split(ROWS_AT_ONCE)
        tokens = [sample_tokens(trunk.logits(row), temperature, suppressed, generator) for row in rows]
        return torch.cat(tokens).reshape(hidden.shape[:-1])

    embeds = embeddings.start.to(trunk.dtype).expand(B, 1, P, N, -1)
    tokens, hidden = [], [embeds[:, :0]]
    for step in range(n_tokens):
        hidden.append(trunk.branch_pass(grid, range(step, step + 1), embeds, cache))
        tokens.append(sample(hidden[-1][:, 0]))
        embeds = trunk.embed(tokens[-1])[:, None]
    stacked = torch.stack(tokens, dim=-1) if tokens else grid.columns.new_zeros(B, P, N, 0)
    return Thoughts(tokens=stacked, hidden=torch.cat(hidden, dim=1), cache=cache)


def sample_tokens(
    logits: Tensor,
    temperature: float,
    suppressed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token a row from softmax(logits / temperature), or take the likeliest at temperature 0.

    One uniform number a row is looked up in the cumulative distribution: noise of vocabulary size is never made.

    Args:
        logits: [n, V]
        temperature: at least 0.
        suppressed: ids that are never drawn.
        generator: source of the uniform numbers.

    Returns:
        [n] token ids.
    """
    logits = logits.float()
    if suppressed is not None and suppressed.numel():
        logits = logits.index_fill(-1, suppressed, -torch.inf)
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    # rounding may lift the product to the total itself, past the last token with any probability
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, point, right=True).squeeze(-1)
    return tokens.clamp(max=logits.shape[-1] - 1)  # NaN is found nowhere; the loss will show it
