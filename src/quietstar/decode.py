"""Think at the end of a text, as decoding does: a branch there is the text going on, and needs no grid.

    pass 1        ... x[i] start    start rides along with the new tokens,
    pass 2        t1                each thought token is a pass of its own,
    ...
    pass K + 1    tK end            and end comes with the last of them: n_ahead - 1 passes.

Where a row's base prediction decides whether it thinks, or where rows differ, start cannot ride along: it is then a
pass of its own, of the rows that think.

Legend: B rows, Q new tokens of each, R rows that think, K sampled tokens of a thought, D hidden size.
"""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from quietstar.attention.fork import ForkedCache
from quietstar.base.trunk import Trunk
from quietstar.heads import ThoughtEmbeddings


@dataclass(slots=True)
class Decoded:
    """What decode leaves behind for talk to go on from."""

    h_base: Tensor
    """[B, Q, D]: states of the new tokens, as the base model makes them."""
    rows: Tensor
    """[R]: rows that think."""
    thoughts: Tensor
    """[R, K]"""
    h_thought: Tensor
    """[R, D]: state at the end token."""


@torch.no_grad()
def decode(
    trunk: Trunk,
    embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    cache: Cache,
    embeddings: ThoughtEmbeddings,
    *,
    n_tokens: int,
    draw: Callable[[Tensor], Tensor],
    who_thinks: Callable[[Tensor], Tensor],
    rides: bool,
) -> Decoded:
    """Read new tokens, and write a thought after the last token of some rows.

    Args:
        trunk: the base model.
        embeds: [B, Q, D], of the new tokens.
        attention_mask: [B, S + Q], 0 at padding.
        position_ids: [B, Q]
        cache: of the S tokens before; the new ones are appended, and nothing else.
        embeddings: start and end of a thought.
        n_tokens: K.
        draw: states [R, D] -> tokens [R].
        who_thinks: h_base [B, Q, D] -> [B] bool.
        rides: start goes along with the new tokens of every row, whether the row thinks or not; not where branches
            go through other weights than the text.
    """
    B, Q, _ = embeds.shape
    trunk.frequencies.choose(position_ids)
    start, end = (of.to(embeds.dtype).expand(B, 1, -1) for of in (embeddings.start, embeddings.end))
    opening = start if n_tokens else torch.cat([start, end], dim=1)
    n_opening = opening.shape[1]
    rides = rides and not trunk.branches_differ
    n_riding = n_opening if rides else 0
    # of the text with a whole branch after it: a pass uses what it has come to
    S = attention_mask.shape[1]
    mask = pad(attention_mask, (0, n_tokens + 2), value=1)
    ahead = torch.arange(1, n_tokens + 3, device=position_ids.device)
    positions = torch.cat([position_ids, position_ids[:, -1:] + ahead], dim=1)

    with closing(ForkedCache(cache, branch_length=n_tokens + 2, n_riding=n_riding, window=trunk.window)) as fork:

        def read(embeds: Tensor, n_branch: int) -> Tensor:
            """[., n, D] -> the same of states: tokens of which the last is the n_branch-th of the branches."""
            n, end = embeds.shape[1], Q + n_branch
            with trunk.in_branches() if n_branch else nullcontext():
                return trunk.base_pass(embeds, mask[:, : S + n_branch], positions[:, end - n : end], fork)

        hidden = read(torch.cat([embeds, opening], dim=1) if rides else embeds, n_riding)
        h_base = hidden[:, :Q]

        rows = who_thinks(h_base).nonzero().flatten()
        words = rows.new_zeros(len(rows), n_tokens)
        if len(rows) == 0:
            return Decoded(h_base, rows, words, h_base[:0, 0])
        if len(rows) < B:
            fork.select(rows)
            hidden, mask, positions, opening, end = (of[rows] for of in (hidden, mask, positions, opening, end))
        state = hidden[:, -1] if rides else read(opening, n_opening)[:, -1]
        for k in range(n_tokens):
            words[:, k] = draw(state)
            word = trunk.embed(words[:, k])[:, None]
            is_last = k == n_tokens - 1
            state = read(torch.cat([word, end], dim=1) if is_last else word, k + 2 + is_last)[:, -1]
        return Decoded(h_base, rows, words, state)
