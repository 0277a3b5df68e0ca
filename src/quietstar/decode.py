"""Think at the end of a text, as decoding does: a branch there is the text continued, and needs no grid.

    pass 1        ... x[i] start    start is read with the new tokens,
    pass 2        t1                each thought token is a pass of its own,
    ...
    pass K + 1    tK end            and end comes with the last of them: n_ahead - 1 passes.

Where a row's base prediction decides whether it thinks, where only some rows think, or where branches go through other
weights than the text, start is not in the first pass: it is then a pass of its own, of the rows that think.

Legend: B rows, S tokens of a row, Q of them new, R rows that think, K sampled tokens of a thought, D hidden size.
"""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from quietstar.attention.fork import ForkedCache
from quietstar.base.trunk import Text
from quietstar.output import ENDED
from quietstar.policy import Decision
from quietstar.think import Sampling, Thinker


@dataclass(slots=True)
class Decoded:
    """States and thoughts at the end of a text."""

    h_base: Tensor
    """[B, Q, D]: states of the new tokens, as the base model has them."""
    rows: Tensor
    """[R]: rows that think."""
    decision: Decision
    """[B], of the policy"""
    thoughts: Tensor
    """[R, K]; -1 after the end of a thought"""
    h_thought: Tensor
    """[R, D]: state at the end token."""


@torch.no_grad()
def decode(
    thinker: Thinker,
    text: Text,
    sampling: Sampling,
    *,
    may_think: Tensor,
    decide: Callable[[Tensor], Decision],
    start_in_first_pass: bool,
) -> Decoded:
    """Read new tokens, and write a thought after the last token of some rows.

    Args:
        thinker: the model's parts.
        text: the new tokens; keys and values of these, and of nothing else, are appended to its cache.
        sampling: how thought tokens are sampled.
        may_think: [B] bool: the rows that think if the decision agrees.
        decide: h_base [B, D] at the last token -> the decision about all rows.
        start_in_first_pass: read start with the new tokens, in all rows; rows that do not think ignore it. It has no
            effect where branches go through other weights than the text.
    """
    trunk, K = thinker.trunk, thinker.n_thought_tokens
    B, Q = text.input_ids.shape
    embeds, position_ids = trunk.embed(text.input_ids), text.new_positions
    trunk.frequencies.choose(position_ids)
    ends = (thinker.embeddings.start, thinker.embeddings.end)
    start, end = (vector.to(embeds.dtype).expand(B, 1, -1) for vector in ends)
    opening = start if K else torch.cat([start, end], dim=1)
    n_opening = opening.shape[1]
    start_in_first_pass = start_in_first_pass and not trunk.branches_differ
    n_early = n_opening if start_in_first_pass else 0
    # mask and positions of the text with a whole branch after it: each pass takes the part that it has reached
    S = text.attention_mask.shape[1]
    mask = pad(text.attention_mask, (0, K + 2), value=1)
    ahead = torch.arange(1, K + 3, device=position_ids.device)
    positions = torch.cat([position_ids, position_ids[:, -1:] + ahead], dim=1)

    with closing(ForkedCache(text.cache, branch_length=K + 2, n_early=n_early, window=trunk.window)) as fork:

        def read(embeds: Tensor, n_branch: int) -> Tensor:
            """Return states [., n, D] of embeddings [., n, D], of which the last is the branches' n_branch-th token."""
            n, stop = embeds.shape[1], Q + n_branch
            with trunk.in_branches() if n_branch else nullcontext():
                return trunk.base_pass(embeds, mask[:, : S + n_branch], positions[:, stop - n : stop], fork)

        hidden = read(torch.cat([embeds, opening], dim=1) if start_in_first_pass else embeds, n_early)
        h_base = hidden[:, :Q]

        decision = decide(h_base[:, -1])
        rows = (decision.think & may_think).nonzero().flatten()
        thoughts = rows.new_zeros(len(rows), K)
        if len(rows) == 0:
            return Decoded(h_base, rows, decision, thoughts, h_base[:0, 0])
        source, sampling = thinker.source, sampling.of(rows)
        if not source.is_sampled:
            at_end = torch.full_like(rows, S - 1)
            thoughts = source.write(text, rows, at_end, 1, sampling.suppressed, sampling.generator)[0]
        if len(rows) < B:
            fork.select(rows)
            hidden, mask, positions, opening, end = (each[rows] for each in (hidden, mask, positions, opening, end))
        state = hidden[:, -1] if start_in_first_pass else read(opening, n_opening)[:, -1]
        h_thought = torch.zeros_like(state)
        live = torch.arange(len(rows), device=rows.device)  # rows that are still read
        has_ended, log_lasting = torch.zeros_like(live, dtype=torch.bool), torch.zeros_like(live, dtype=torch.float)
        for k in range(K):
            if source.is_sampled:
                thoughts[live, k] = sampling.sample(trunk, state)[0].squeeze(1)
            token, is_last = trunk.embed(thoughts[live, k])[:, None], k == K - 1
            stops = has_ended
            if thinker.end_head is not None:
                decided, _, log_lasting = sampling.end(thinker.end_head(state), log_lasting)
                stops = decided & ~has_ended
                token = torch.where(stops[:, None, None], end, token)
                thoughts[live[stops | has_ended], k:] = ENDED
            states = read(torch.cat([token, end], dim=1) if is_last else token, k + 2 + is_last)
            state = states[:, -1]
            if thinker.end_head is None:
                continue
            h_thought[live[stops]] = states[stops, 0]
            has_ended = has_ended | stops
            if is_last:
                h_thought[live[~has_ended]] = state[~has_ended]
            elif stops.any() and not trunk.is_sharded:  # processes that share weights make the same passes
                some = (~has_ended).nonzero().flatten()
                if len(some) == 0:
                    break
                # dropping rows copies the keys of the others; with its own generator, a row draws nothing after its end
                if 2 * len(some) > len(live) and not sampling.is_by_row:
                    continue
                fork.select(some)
                sampling = sampling.of(some)
                of_rows = (live, state, mask, positions, end, has_ended, log_lasting)
                live, state, mask, positions, end, has_ended, log_lasting = (each[some] for each in of_rows)
        if thinker.end_head is None or K == 0:
            h_thought = state
        return Decoded(h_base, rows, decision, thoughts, h_thought)
