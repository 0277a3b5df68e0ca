"""Attention of branch tokens in two parts: to the base tokens before their column, and to their own branch.

The softmax over both is put together from their log-sum-exps, forwards and backwards, and only small blocks of
scores ever exist. Everything is computed in float32 on a CPU; elsewhere products keep the dtype of their inputs,
and softmax, log-sum-exp and sums are in float32.

Legend: B examples, H heads = J key-value heads x G queries for each, Q steps of P x N branches, C = Q x P x N
branch tokens, S base tokens whose keys are kept, L steps of the branches so far, d head size.

    scores(q, k) = softcap(scaling q k)           p = exp(scores - lse)           out = p v
    d_scores = p (d_out v - d_out out)            d_q = d_scores k                d_k = d_scores q       d_v = p d_out
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

COLUMNS_AT_ONCE = 64
"""columns whose scores are one block: keys past the last of them are never multiplied"""

SCORES_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""elements of a block of scores: what fits into a core's cache, or keeps a GPU busy"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What branch tokens may not see, one layer's window taken into account."""

    n_passes: int
    """P"""
    prefix_hidden: Tensor
    """[B, Q or 1, N, S] bool: base tokens that a column's steps do not see; one entry where all steps see alike."""
    own_hidden: Tensor
    """[B, Q, L, N] bool: tokens of its own branch that a step does not see."""
    reach: list[tuple[int, int]] = field(init=False)
    """for each column, the first base token that any row or step of it sees, and the one after the last"""

    def __post_init__(self) -> None:
        seen = ~self.prefix_hidden.all(dim=1).all(dim=0)  # [N, S]
        S = seen.shape[1]
        first = torch.where(seen.any(1), seen.int().argmax(1), S)
        last = torch.where(seen.any(1), S - seen.flip(1).int().argmax(1), 0)
        object.__setattr__(self, "reach", torch.stack([first, last], dim=1).tolist())

    def blocks(self, n_heads: int) -> Iterator[tuple[slice, slice, slice]]:
        """Steps, columns and base tokens of blocks that together hold everything that is seen."""
        B, Q, _, N = self.own_hidden.shape
        for columns in range(0, N, COLUMNS_AT_ONCE):
            block = self.reach[columns : columns + COLUMNS_AT_ONCE]
            first, last = min(low for low, _ in block), max(high for _, high in block)
            if first >= last:
                continue
            scores = B * n_heads * self.n_passes * len(block) * (last - first)
            n_steps = max(1, SCORES_AT_ONCE.get(self.prefix_hidden.device.type, 2**20) // scores)
            for step in range(0, Q, n_steps):
                steps = slice(step, min(step + n_steps, Q))
                yield steps, slice(columns, columns + len(block)), slice(first, last)


def two_part_attention(
    query: Tensor,
    prefix: tuple[Tensor, Tensor],
    own: list[tuple[Tensor, Tensor]],
    sight: Sight,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of branch tokens to the base and to their own branches.

    Args:
        query: [B, H, C, d], step by step.
        prefix: keys [B, J, S, d] and values [B, J, S, d'] of the base tokens.
        own: keys [B, J, l x P x N, d] and values of the branch tokens, in pieces of some steps each, L in all.
        sight: what is not seen.
        scaling: factor of the scores.
        softcap: scores are bent to stay within it.
        sinks: [H], a score for each head that takes part in the softmax and has no value.

    Returns:
        [B, C, H, d']
    """
    pieces = [tensor for keys_and_values in own for tensor in keys_and_values]
    return _TwoParts.apply(query, *prefix, sinks, sight, scaling, softcap, *pieces)  # type: ignore[no-untyped-call,no-any-return]


class _Parts:
    """The same tensors, seen from the base and from the branches."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Tensor, ...], sight: Sight, scaling: float
    ) -> None:
        B, Q, L, N = sight.own_hidden.shape
        self.P, self.J, self.sight, self.n_heads = sight.n_passes, key.shape[1], sight, query.shape[1]
        dtype = torch.float32 if query.device.type == "cpu" else query.dtype
        self.q = (query.to(dtype) * scaling).view(B, self.J, -1, Q, self.P, N, query.shape[-1])
        self.k, self.v = key.to(dtype), value.to(dtype)
        self.own_q = self.rows_by_branch(self.q)
        self.own_k, self.own_v = (self._by_branch(which, dtype) for which in (pieces[::2], pieces[1::2]))
        hidden = sight.own_hidden[:, :, :, None].expand(-1, -1, -1, self.P, -1)  # [B, Q, L, P, N]
        G = self.q.shape[2]
        own_hidden = hidden.permute(0, 3, 4, 1, 2)[:, None, :, :, None].expand(-1, -1, -1, -1, G, -1, -1)
        self.own_hidden = own_hidden.reshape(B, 1, self.P * N, G * Q, L)

    def _by_branch(self, pieces: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """[B, J, l x P x N, d] each -> [B, J, P x N, L, d]"""
        n_branches = self.own_q.shape[2]
        return torch.cat([piece.to(dtype).unflatten(2, (-1, n_branches)) for piece in pieces], dim=2).transpose(2, 3)

    def rows_by_branch(self, tokens: Tensor) -> Tensor:
        """[B, J, G, Q, P, N, d] -> [B, J, P x N, G x Q, d]"""
        return tokens.permute(0, 1, 4, 5, 2, 3, 6).flatten(4, 5).flatten(2, 3)

    def rows_from_branch(self, rows: Tensor) -> Tensor:
        """[B, J, P x N, G x Q, d] -> [B, J, G, Q, P, N, d]"""
        B, J, G, Q, P, N, _ = self.q.shape
        return rows.view(B, J, P, N, G, Q, -1).permute(0, 1, 4, 5, 2, 3, 6)

    def blocks(self) -> Iterator[tuple[tuple[slice, ...], slice, Tensor]]:
        """Where a block's rows are in [B, J, G, Q, P, N], its base tokens, and what it does not see."""
        every = slice(None)
        for steps, columns, keys in self.sight.blocks(self.n_heads):
            of_steps = steps if self.sight.prefix_hidden.shape[1] > 1 else every
            hidden = self.sight.prefix_hidden[:, None, None, of_steps, None, columns, keys]
            yield (every, every, every, steps, every, columns), keys, hidden


def _scores(q: Tensor, k: Tensor, softcap: float | None) -> Tensor:
    """[..., R, d] and [..., T, d] -> [..., R, T] in float32"""
    scores = torch.matmul(q, k.transpose(-1, -2)).float()
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """In place: [..., T] -> exp(scores - log-sum-exp), and [..., 1] the log-sum-exp; 0 and -inf where all is hidden."""
    highest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    total = scores.sub_(highest).exp_().sum(-1, keepdim=True)
    scores.div_(total.clamp(min=torch.finfo(scores.dtype).tiny))
    return scores, total.log_().add_(highest)


class _TwoParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        sight: Sight,
        scaling: float,
        softcap: float | None,
        *pieces: Tensor,
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            parts = _Parts(query, key, value, pieces, sight, scaling)
            own = _scores(parts.own_q, parts.own_k, softcap).masked_fill_(parts.own_hidden, -torch.inf)
            own, own_lse = _softmax(own)
            out = parts.rows_from_branch(torch.matmul(own.to(parts.v.dtype), parts.own_v)).float().contiguous()
            lse = parts.rows_from_branch(own_lse).contiguous()
            for rows, keys, hidden in parts.blocks():
                q = parts.q[rows]
                scores = _scores(q.flatten(2, 5), parts.k[:, :, keys], softcap)
                scores.view(*q.shape[:-1], -1).masked_fill_(hidden, -torch.inf)
                scores, prefix_lse = _softmax(scores)
                prefix = torch.matmul(scores.to(parts.v.dtype), parts.v[:, :, keys])
                prefix_lse = prefix_lse.view(*q.shape[:-1], 1)
                both = torch.logaddexp(lse[rows], prefix_lse)
                prefix = prefix.view(*q.shape[:-1], -1) * (prefix_lse - both).exp()
                out[rows] = out[rows].mul_((lse[rows] - both).exp()).add_(prefix)
                lse[rows] = both
            if sinks is not None:
                sink = sinks.float().view(parts.J, -1, 1, 1, 1, 1)
                both = torch.logaddexp(lse, sink)
                out.mul_((lse - both).exp())
                lse = both
            result = out.permute(0, 3, 4, 5, 1, 2, 6).flatten(4, 5).flatten(1, 3).to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, result, lse, *pieces)
        ctx.settings = sight, scaling, softcap
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_result: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, result, lse, *pieces = ctx.saved_tensors  # type: ignore[attr-defined]
        sight, scaling, softcap = ctx.settings  # type: ignore[attr-defined]
        with torch.autocast(query.device.type, enabled=False):
            parts = _Parts(query, key, value, tuple(pieces), sight, scaling)
            B, J, G, Q, P, N, _ = parts.q.shape
            d_out = d_result.view(B, Q, P, N, J, G, -1).permute(0, 4, 5, 1, 2, 3, 6).to(parts.v.dtype)
            out = result.view(B, Q, P, N, J, G, -1).permute(0, 4, 5, 1, 2, 3, 6)
            offset = (d_out.float() * out.float()).sum(-1, keepdim=True)  # [B, J, G, Q, P, N, 1]

            def through(scores: Tensor, p: Tensor, d_out: Tensor, v: Tensor, offset: Tensor) -> Tensor:
                d_scores = torch.matmul(d_out, v.transpose(-1, -2)).float().sub_(offset).mul_(p)
                if softcap is not None:
                    d_scores.mul_(1 - (scores / softcap).square())
                return d_scores.to(v.dtype)

            # the own branch
            scores = _scores(parts.own_q, parts.own_k, softcap)
            own_lse, own_offset = parts.rows_by_branch(lse), parts.rows_by_branch(offset)
            own_d_out = parts.rows_by_branch(d_out)
            p = (scores - own_lse).exp_().masked_fill_(parts.own_hidden, 0)
            d_scores = through(scores, p, own_d_out, parts.own_v, own_offset)
            d_query = parts.rows_from_branch(torch.matmul(d_scores, parts.own_k)).float().contiguous()
            d_own_key = torch.matmul(d_scores.transpose(-1, -2), parts.own_q)  # [B, J, P x N, L, d]
            d_own_value = torch.matmul(p.to(parts.v.dtype).transpose(-1, -2), own_d_out)

            # the base
            d_key = torch.zeros(parts.k.shape, dtype=torch.float32, device=key.device)
            d_value = torch.zeros(parts.v.shape, dtype=torch.float32, device=key.device)
            for rows, keys, hidden in parts.blocks():
                q, d_rows = parts.q[rows].flatten(2, 5), d_out[rows].flatten(2, 5)
                scores = _scores(q, parts.k[:, :, keys], softcap)
                p = scores - lse[rows].flatten(2, 5) if softcap else scores.sub_(lse[rows].flatten(2, 5))
                p.exp_().view(*lse[rows].shape[:-1], -1).masked_fill_(hidden, 0)
                d_scores = through(scores, p, d_rows, parts.v[:, :, keys], offset[rows].flatten(2, 5))
                d_value[:, :, keys] += torch.matmul(p.to(d_rows.dtype).transpose(-1, -2), d_rows)
                d_key[:, :, keys] += torch.matmul(d_scores.transpose(-1, -2), q)
                d_query[rows] += torch.matmul(d_scores, parts.k[:, :, keys]).view(*lse[rows].shape[:-1], -1)

            d_sinks = None
            if sinks is not None:
                share = (sinks.float().view(J, G, 1, 1, 1, 1) - lse).exp()
                d_sinks = -(share * offset).sum((0, 3, 4, 5, 6)).view_as(sinks).to(sinks.dtype)
            d_query = d_query.mul_(scaling).view(query.shape[0], query.shape[1], -1, query.shape[-1])
            n_steps = [piece.shape[2] // (P * N) for piece in pieces[::2]]
            d_pieces = [
                d_piece.transpose(2, 3).flatten(2, 3).to(key.dtype)
                for both in zip(d_own_key.split(n_steps, dim=3), d_own_value.split(n_steps, dim=3), strict=True)
                for d_piece in both
            ]
        d_query, d_key, d_value = d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype)
        return d_query, d_key, d_value, d_sinks, None, None, None, *d_pieces
