"""Attention of branch tokens in two parts: to the base tokens before their column, and to their own branch.

The softmax over both is put together from their log-sum-exps, forwards and backwards, and only small blocks of
scores ever exist. Everything is computed in float32 on a CPU; elsewhere products keep the dtype of their inputs,
and softmax, log-sum-exp and sums are in float32. Exponentials are of base 2 and scores are in bits: on a CPU the
natural one is ten times slower where it meets -inf or underflows, which is wherever a score is masked.

Legend: B examples, H heads = J key-value heads x G queries for each, Q steps of P x N branches, C = Q x P x N
branch tokens, S base tokens whose keys are kept, L steps of the branches so far, d head size.

    scores = softcap(scaling q k)          p = exp(scores - lse)         out = p v
    d_scores = p (d_out v - d_out out)     d_q = scaling d_scores k      d_k = scaling d_scores q     d_v = p d_out
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BITS = 1 / math.log(2)
"""in a nat"""

COLUMNS_AT_ONCE = 64
"""columns whose scores are one block: keys past the last of them are never multiplied"""

ROWS_AT_LEAST = 8
"""queries of a branch that are multiplied at once: with fewer, a CPU's batched products are many times slower"""

SCORES_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""elements of a block of scores: what fits into a core's cache, or keeps a GPU busy"""


@dataclass(slots=True)
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
        self.reach = torch.stack([first, last], dim=1).tolist()

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Columns that are worked on at once, and the base tokens that any of them sees."""
        N = self.own_hidden.shape[-1]
        for column in range(0, N, COLUMNS_AT_ONCE):
            columns = slice(column, min(column + COLUMNS_AT_ONCE, N))
            reach = self.reach[columns]
            yield columns, slice(min(low for low, _ in reach), max(high for _, high in reach))


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
    return _TwoParts.apply(query, *prefix, sinks, sight, scaling, softcap, *pieces)


@dataclass(slots=True)
class _Block:
    """Some columns' branches: J x G heads, n columns, T base tokens."""

    q: Tensor
    """[B, J, G, Q, P, n, d], times scaling, in bits"""
    k: Tensor
    """[B, J, T, d] of the base tokens"""
    v: Tensor
    """[B, J, T, d']"""
    own_k: Tensor
    """[B, J, P x n, L, d] of the branches themselves"""
    own_v: Tensor
    """[B, J, P x n, L, d']"""
    prefix_mask: Tensor
    """[B, 1, 1, Q or 1, 1, n, T], added to scores"""
    own_mask: Tensor
    """[B, 1, P x n, R, L], added to scores"""
    softcap: float | None

    def own_scores(self) -> Tensor:
        """[B, J, P x n, R, L]"""
        return _scores(self.by_branch(self.q), self.own_k, self.softcap).add_(self.own_mask)

    def steps(self) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor]]:
        """Some steps at a time: where they are in [B, J, G, Q, P, n], their queries as rows, and their scores."""
        B, J, G, Q, P, n, _ = self.q.shape
        T = self.k.shape[2]
        if T == 0:
            return
        at_once = SCORES_AT_ONCE.get(self.q.device.type, SCORES_AT_ONCE["cpu"])
        n_steps = max(1, at_once // (B * J * G * P * n * T))
        for step in range(0, Q, n_steps):
            where = (slice(None), slice(None), slice(None), slice(step, step + n_steps))
            q = self.q[where].flatten(2, 5)
            yield where, q, _scores(q, self.k, self.softcap)

    def mask(self, where: tuple[slice, ...]) -> Tensor:
        """What is added to the scores of those steps."""
        return self.prefix_mask if self.prefix_mask.shape[3] == 1 else self.prefix_mask[where]

    def by_branch(self, tokens: Tensor) -> Tensor:
        """[B, J, G, Q, P, n, x] -> [B, J, P x n, R, x]: G x Q rows, and zeros up to ROWS_AT_LEAST."""
        B, J, G, Q, P, n, x = tokens.shape
        rows = tokens.new_zeros(B, J, P, n, max(G * Q, ROWS_AT_LEAST), x)
        rows[..., : G * Q, :].unflatten(4, (G, Q)).copy_(tokens.permute(0, 1, 4, 5, 2, 3, 6))
        return rows.flatten(2, 3)

    def from_branch(self, rows: Tensor) -> Tensor:
        """[B, J, P x n, R, x] -> [B, J, G, Q, P, n, x]"""
        _, _, G, Q, P, n, _ = self.q.shape
        return rows[..., : G * Q, :].unflatten(3, (G, Q)).unflatten(2, (P, n)).permute(0, 1, 4, 5, 2, 3, 6)


class _Parts:
    """Queries, keys and values, a block of columns at a time."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pieces: tuple[Tensor, ...],
        sight: Sight,
        scaling: float,
        softcap: float | None,
    ) -> None:
        B, Q, _, N = sight.own_hidden.shape
        self.shape = (B, key.shape[1], query.shape[1] // key.shape[1], Q, sight.n_passes, N)
        self.dtype = torch.float32 if query.device.type == "cpu" else query.dtype
        self.query, self.key, self.value = self.by_column(query), key.to(self.dtype), value.to(self.dtype)
        self.own_keys, self.own_values = (
            [piece.unflatten(2, (-1, sight.n_passes, N)) for piece in which] for which in (pieces[::2], pieces[1::2])
        )  # [B, J, l, P, N, d] each
        self.sight, self.scaling, self.softcap = sight, scaling, softcap

    def by_column(self, tokens: Tensor) -> Tensor:
        """[B, H, C, x] -> [B, J, G, Q, P, N, x]"""
        return tokens.unflatten(2, self.shape[3:]).unflatten(1, self.shape[1:3])

    def __iter__(self) -> Iterator[tuple[slice, slice, _Block]]:
        G = self.shape[2]
        for columns, keys in self.sight.blocks():
            own_hidden = self.sight.own_hidden[..., columns]  # [B, Q, L, n]
            own_hidden = own_hidden[:, None].expand(-1, G, -1, -1, -1).flatten(1, 2).permute(0, 3, 1, 2)
            own_hidden = nn.functional.pad(own_hidden, (0, 0, 0, max(0, ROWS_AT_LEAST - own_hidden.shape[2])))
            yield (
                columns,
                keys,
                _Block(
                    q=self.query[..., columns, :].to(self.dtype) * (self.scaling * BITS),
                    k=self.key[:, :, keys],
                    v=self.value[:, :, keys],
                    own_k=self._own(self.own_keys, columns),
                    own_v=self._own(self.own_values, columns),
                    prefix_mask=_mask(self.sight.prefix_hidden[:, None, None, :, None, columns, keys]),
                    own_mask=_mask(own_hidden.repeat(1, self.sight.n_passes, 1, 1)[:, None]),
                    softcap=self.softcap,
                ),
            )

    def _own(self, pieces: list[Tensor], columns: slice) -> Tensor:
        tokens = torch.cat([piece[..., columns, :] for piece in pieces], dim=2).to(self.dtype)
        return tokens.permute(0, 1, 3, 4, 2, 5).flatten(2, 3)


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
            parts = _Parts(query, key, value, pieces, sight, scaling, softcap)
            B, J, G, Q, P, N = parts.shape
            result = query.new_empty(B, Q, P, N, J, G, value.shape[-1])
            lse = torch.empty(*parts.shape, 1, dtype=torch.float32, device=query.device)
            for columns, _, block in parts:
                p, total, own_lse = _softmax(block.own_scores())
                out = block.from_branch(torch.matmul(p.to(parts.dtype), block.own_v).float().div_(total))
                both = block.from_branch(own_lse)
                out, both = out.contiguous(), both.contiguous()
                for where, _, scores in block.steps():
                    of = both[where].shape[:-1]
                    scores.view(*of, -1).add_(block.mask(where))
                    p, total, prefix_lse = (values.view(*of, -1) for values in _softmax(scores))
                    prefix = torch.matmul(p.flatten(2, 5).to(parts.dtype), block.v).float().view(*of, -1)
                    merged = torch.logaddexp2(both[where], prefix_lse)
                    out[where] *= (both[where] - merged).exp2_()
                    out[where] += prefix.mul_((prefix_lse - merged).exp2_().div_(total))
                    both[where] = merged
                if sinks is not None:
                    merged = torch.logaddexp2(both, sinks.float().view(J, G, 1, 1, 1, 1) * BITS)
                    out *= (both - merged).exp2_()
                    both = merged
                result[:, :, :, columns] = out.permute(0, 3, 4, 5, 1, 2, 6)
                lse[..., columns, :] = both
        ctx.save_for_backward(query, key, value, sinks, result, lse, *pieces)
        ctx.settings = sight, scaling, softcap
        return result.flatten(4, 5).flatten(1, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, result, lse, *pieces = ctx.saved_tensors
        sight, scaling, softcap = ctx.settings
        with torch.autocast(query.device.type, enabled=False):
            parts = _Parts(query, key, value, tuple(pieces), sight, scaling, softcap)
            J, G, _, P, N = parts.shape[1:]
            L = sight.own_hidden.shape[2]
            d_result = d_result.reshape(result.shape)
            d_query = torch.empty_like(query)
            d_key, d_value = (torch.zeros(of.shape, dtype=torch.float32, device=of.device) for of in (key, value))
            d_own = [of.new_empty(*of.shape[:2], L, P, N, of.shape[-1]) for of in (key, value)]
            d_sinks = None if sinks is None else torch.zeros(J, G, dtype=torch.float32, device=sinks.device)
            for columns, keys, block in parts:
                d_out = d_result[:, :, :, columns].permute(0, 4, 5, 1, 2, 3, 6)  # [B, J, G, Q, P, n, d']
                out, block_lse = result[:, :, :, columns].permute(0, 4, 5, 1, 2, 3, 6), lse[..., columns, :]
                offset = (d_out.float() * out.float()).sum(-1, keepdim=True)
                d_out = d_out.to(parts.dtype)

                own_scores = block.own_scores()
                own_lse, rows, own_offset = (block.by_branch(of) for of in (block_lse, d_out, offset))
                p, d_scores = _through(own_scores, own_lse, rows, own_offset, block.own_v, softcap)
                d_q = block.from_branch(torch.matmul(d_scores, block.own_k)).float().contiguous()
                d_own_k = torch.matmul(d_scores.transpose(-1, -2), block.by_branch(block.q)).div_(BITS)
                d_own_v = torch.matmul(p.transpose(-1, -2), rows)
                for whole, part in zip(d_own, (d_own_k, d_own_v), strict=True):
                    whole[..., columns, :] = part.unflatten(2, (P, -1)).permute(0, 1, 4, 2, 3, 5)

                for where, q, scores in block.steps():
                    of = block_lse[where].shape[:-1]
                    scores.view(*of, -1).add_(block.mask(where))
                    step_lse, rows, step_offset = (each[where].flatten(2, 5) for each in (block_lse, d_out, offset))
                    p, d_scores = _through(scores, step_lse, rows, step_offset, block.v, softcap)
                    d_value[:, :, keys] += torch.matmul(p.transpose(-1, -2), rows)
                    d_key[:, :, keys] += torch.matmul(d_scores.transpose(-1, -2), q)
                    d_q[where] += torch.matmul(d_scores, block.k).view(*of, -1)
                parts.by_column(d_query)[..., columns, :] = d_q.mul_(scaling)
                if d_sinks is not None:
                    share = (sinks.float().view(J, G, 1, 1, 1, 1) * BITS - block_lse).exp2_()
                    d_sinks -= share.mul_(offset).sum((0, 3, 4, 5, 6))
            n_steps = [piece.shape[2] // (P * N) for piece in pieces[::2]]
            d_pieces = [
                d_piece.flatten(2, 4)
                for both in zip(*(whole.split(n_steps, dim=2) for whole in d_own), strict=True)
                for d_piece in both
            ]
            d_key.div_(BITS)
        d_sinks = None if d_sinks is None else d_sinks.view_as(sinks).to(sinks.dtype)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_sinks, None, None, None, *d_pieces


def _mask(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _scores(q: Tensor, k: Tensor, softcap: float | None) -> Tensor:
    """[..., R, d] and [..., T, d] -> [..., R, T] in float32, in bits"""
    scores = torch.matmul(q, k.transpose(-1, -2).contiguous()).float()
    return scores if softcap is None else scores.div_(softcap * BITS).tanh_().mul_(softcap * BITS)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In place: [..., T] -> p times a total, that total [..., 1], and the log-sum-exp, -inf where all is hidden."""
    lowest = torch.finfo(scores.dtype).min
    highest = scores.amax(-1, keepdim=True).clamp_(min=lowest)
    total = scores.sub_(highest).exp2_().sum(-1, keepdim=True)
    lse = total.log2().add_(highest)
    return scores, total.clamp_(min=torch.finfo(scores.dtype).tiny), lse


def _through(
    scores: Tensor, lse: Tensor, d_out: Tensor, offset: Tensor, v: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Gradient of scores [..., R, T], from that of what they put out: p and d_scores [..., R, T]. Scores are lost."""
    slope = None if softcap is None else 1 - (scores / (softcap * BITS)).clamp_(-1, 1).square_()
    p = scores.sub_(lse).exp2_()
    d_scores = torch.matmul(d_out, v.transpose(-1, -2).contiguous()).float().sub_(offset).mul_(p)
    if slope is not None:
        d_scores.mul_(slope)
    return p.to(v.dtype), d_scores.to(v.dtype)
