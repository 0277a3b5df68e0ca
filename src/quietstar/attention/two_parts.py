"""Attention of branch tokens in two parts: to the base tokens before their column, and to their own branch.

Both parts share one softmax, in the forward and the backward pass, and only small blocks of scores ever exist. On a CPU
everything is computed in float32; elsewhere products keep the dtype of their inputs, and softmax, log-sum-exp and sums
are in float32. Scores are in bits and exponentials have base 2: on a CPU, exp is ten times slower than exp2 for -inf
and on underflow, so for every masked score.

Legend: B rows of text, H heads = J key-value heads x G queries for each, Q steps of P passes of C columns, S base
tokens whose keys are kept, L steps of the branches so far, d head size. A block has n columns of each of b rows and
the T base tokens that any of them sees.

    scores = softcap(scaling q k)          p = exp(scores - lse)         out = p v
    d_scores = p (d_out v - d_out out)     d_q = scaling d_scores k      d_k = scaling d_scores q     d_v = p d_out
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quietstar.attention.sight import Place, Sight
from quietstar.base.precision import product_dtype

BITS = 1 / math.log(2)
"""bits in a nat"""

ROWS_AT_LEAST = 8
"""least queries of a branch in products with its keys and values; with fewer, batched products are many times slower on
a CPU"""


def two_part_attention(
    query: Tensor,
    prefix: tuple[Tensor, Tensor],
    pieces: list[tuple[Tensor, Tensor]],
    sight: Sight,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return [1, Q x P x C, H, d']: the attention of branch tokens to the base and to their own branches.

    Args:
        query: [1, H, Q x P x C, d], ordered by step.
        prefix: keys [B, J, S, d] and values [B, J, S, d'] of the base tokens.
        pieces: keys [J, C, P, l, d] and values of the branch tokens, some steps l in each piece, L in all.
        sight: the keys that are hidden.
        scaling: factor of the scores.
        softcap: scores are squashed to stay within it.
        sinks: [H], for each head a score that enters the softmax and has no value.
    """
    tensors = [tensor for keys_and_values in pieces for tensor in keys_and_values]
    return _TwoParts.apply(query, *prefix, sinks, sight, scaling, softcap, products_dtype(query), *tensors)


def products_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype of products: float32 on a CPU, elsewhere that of the base model's own attention."""
    return torch.float32 if query.device.type == "cpu" else product_dtype(query)


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
        dtype: torch.dtype,
    ) -> None:
        J, C = key.shape[1], sum(sight.per_row)
        self.heads = (J, query.shape[1] // J)
        self.steps = (sight.own_hidden.shape[1], sight.n_passes, C)
        self.dtype = dtype
        self.query = self.by_column(query[0])
        self.key, self.value = (x.to(self.dtype).transpose(0, 1).contiguous() for x in (key, value))  # [J, B, S, d]
        self.own_keys, self.own_values = pieces[::2], pieces[1::2]
        self.sight, self.scaling, self.softcap = sight, scaling, softcap

    def by_column(self, tokens: Tensor) -> Tensor:
        """View [H, Q x P x C, x] as [J, C, P, G, Q, x]."""
        return tokens.unflatten(1, self.steps).unflatten(0, self.heads).permute(0, 4, 3, 1, 2, 5)

    def __iter__(self) -> Iterator[tuple[Place, "_Block"]]:
        for place in self.sight.places(self.heads[0] * self.heads[1]):
            yield (
                place,
                _Block(
                    q=self._scaled(place.take(self.query[..., place.steps, :])),
                    k=self.key[:, place.rows, place.keys].flatten(0, 1),
                    v=self.value[:, place.rows, place.keys].flatten(0, 1),
                    own_k=self._own(self.own_keys, place),
                    own_v=self._own(self.own_values, place),
                    prefix_mask=_mask(self.sight.prefix_at(place)),
                    own_mask=_mask(self.sight.own_at(place)),
                    softcap=self.softcap,
                ),
            )

    def _scaled(self, query: Tensor) -> Tensor:
        query = query.to(self.dtype)
        return torch.mul(query, self.scaling * BITS, out=query.new_empty(query.shape))

    def _own(self, pieces: tuple[Tensor, ...], place: Place) -> Tensor:
        """Return the keys or values of the block's branches that its steps see, [J x b x n x P, L, x]."""
        if len(pieces) == 1:
            return place.take(pieces[0][..., place.own, :]).to(self.dtype).flatten(0, 3)
        joined = torch.cat([place.take(piece) for piece in pieces], dim=-2)
        return joined[..., place.own, :].to(self.dtype).flatten(0, 3)


@dataclass(slots=True)
class _Block:
    """The branches of some columns."""

    q: Tensor
    """[J, b, n, P, G, Q, d], multiplied by scaling, in bits"""
    k: Tensor
    """[J x b, T, d], of the base tokens"""
    v: Tensor
    """[J x b, T, d']"""
    own_k: Tensor
    """[J x b x n x P, L, d], of the branches"""
    own_v: Tensor
    """[J x b x n x P, L, d']"""
    prefix_mask: Tensor
    """[1, b, n, Q or 1, T], added to scores"""
    own_mask: Tensor
    """[1, b or 1, n or 1, Q, L], added to scores"""
    softcap: float | None

    def scores(self) -> tuple[Tensor, Tensor]:
        """Return float32 scores in bits: [J, b, n, P, G, Q, T] for base tokens, [J, b, n, P, G, Q, L] for branches."""
        prefix = torch.bmm(by_row(self.q), self.k.transpose(1, 2).contiguous()).float()
        own = torch.bmm(by_branch(self.q), self.own_k.transpose(1, 2)).float()
        both = self.from_row(prefix), self.from_branch(own)
        for scores, mask in zip(both, (self.prefix_mask, self.own_mask), strict=True):
            if self.softcap is not None:
                scores.div_(self.softcap * BITS).tanh_().mul_(self.softcap * BITS)
            scores.add_(mask[:, :, :, None, None])
        return both

    def from_row(self, rows: Tensor) -> Tensor:
        """View [J x b, n x P x G x Q, x] as [J, b, n, P, G, Q, x]."""
        return rows.view(*self.q.shape[:-1], rows.shape[-1])

    def from_branch(self, rows: Tensor) -> Tensor:
        """Reshape [J x b x n x P, R, x], padded or not, to [J, b, n, P, G, Q, x]."""
        G, Q = self.q.shape[4:6]
        return rows[:, : G * Q].contiguous().view(*self.q.shape[:-1], rows.shape[-1])


def by_row(tokens: Tensor) -> Tensor:
    """View [J, b, n, P, G, Q, x] as [J x b, n x P x G x Q, x]."""
    J, b, *queries, x = tokens.shape
    return tokens.view(J * b, math.prod(queries), x)


def by_branch(tokens: Tensor) -> Tensor:
    """Reshape [J, b, n, P, G, Q, x] to [J x b x n x P, G x Q, x]."""
    return tokens.flatten(0, 3).flatten(1, 2)


def padded(rows: Tensor) -> Tensor:
    """Pad [..., G x Q, x] with zeros to [..., R, x], at least ROWS_AT_LEAST rows."""
    missing = ROWS_AT_LEAST - rows.shape[1]
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


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
        dtype: torch.dtype,
        *pieces: Tensor,
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            parts = _Parts(query, key, value, pieces, sight, scaling, softcap, dtype)
            result = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
            by_column, sink = parts.by_column(result.transpose(0, 1)), _sink(sinks, parts.heads)
            lses = []
            for place, block in parts:
                prefix, own = block.scores()
                highest = own.amax(-1, keepdim=True)
                if prefix.shape[-1]:
                    highest = torch.maximum(highest, prefix.amax(-1, keepdim=True))
                if sink is not None:
                    highest = torch.maximum(highest, sink)
                total = prefix.sub_(highest).exp2_().sum(-1, keepdim=True)
                total += own.sub_(highest).exp2_().sum(-1, keepdim=True)
                if sink is not None:
                    total += (sink - highest).exp2_()
                out = block.from_branch(torch.bmm(padded(by_branch(own)).to(parts.dtype), block.own_v)).float()
                _add_product_(by_row(out), by_row(prefix).to(parts.dtype), block.v)
                place.put(by_column[..., place.steps, :], out.div_(total))
                lse = total.log2_().add_(highest)
                if place.is_real is not None:  # padding takes no part in any gradient
                    lse.masked_fill_(~place.is_real[:, :, None, None, None, None], torch.inf)
                lses.append(lse)
        ctx.save_for_backward(query, key, value, sinks, result, *lses, *pieces)
        ctx.settings = sight, scaling, softcap, dtype, len(lses)
        return result[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, result, *rest = ctx.saved_tensors
        sight, scaling, softcap, dtype, n_blocks = ctx.settings
        lses, pieces = rest[:n_blocks], tuple(rest[n_blocks:])
        with torch.autocast(query.device.type, enabled=False):
            parts = _Parts(query, key, value, pieces, sight, scaling, softcap, dtype)
            C, L = sum(sight.per_row), sight.own_hidden.shape[2]
            offset = (d_result[0].float() * result.float()).sum(-1, keepdim=True)
            d_outs, offsets = (parts.by_column(x.transpose(0, 1)) for x in (d_result[0], offset))
            d_query = torch.empty_like(query)
            d_key, d_value = (torch.zeros_like(x, dtype=torch.float32) for x in (parts.key, parts.value))
            make, write = (torch.zeros, Place.add) if sight.is_in_steps else (torch.empty, Place.put)
            d_own = [make(x.shape[1], C, sight.n_passes, L, x.shape[-1], device=x.device) for x in (key, value)]
            sink, d_sinks = _sink(sinks, parts.heads), None
            for (place, block), lse in zip(parts, lses, strict=True):
                d_out, off = (place.take(x[..., place.steps, :]) for x in (d_outs, offsets))
                d_out = d_out.to(parts.dtype).contiguous()
                q, rows, q_own, own_rows = by_row(block.q), by_row(d_out), by_branch(block.q), by_branch(d_out)
                prefix, own = block.scores()

                d_p = block.from_branch(torch.bmm(own_rows, block.own_v.transpose(1, 2)).float())
                p, d_scores = (padded(by_branch(x)) for x in _through(own, lse, d_p, off, softcap, parts.dtype))
                d_q = block.from_branch(_product(d_scores, block.own_k, scaling)).float()
                d_own_k = _product(d_scores.transpose(1, 2), padded(q_own), 1 / BITS)
                d_own_v = torch.bmm(p.transpose(1, 2), padded(own_rows))
                for whole, part in zip(d_own, (d_own_k, d_own_v), strict=True):
                    write(place, whole[..., place.own, :], part.view(*block.q.shape[:4], *part.shape[1:]))

                d_p = block.from_row(torch.bmm(rows, block.v.transpose(1, 2).contiguous()).float())
                p, d_scores = (by_row(x) for x in _through(prefix, lse, d_p, off, softcap, parts.dtype))
                _add_product_(by_row(d_q), d_scores, block.k, scaling)
                J_b = block.q.shape[:2]
                d_value[:, place.rows, place.keys] += torch.bmm(p.transpose(1, 2), rows).unflatten(0, J_b)
                d_key[:, place.rows, place.keys] += torch.bmm(d_scores.transpose(1, 2), q).unflatten(0, J_b)
                place.put(parts.by_column(d_query[0])[..., place.steps, :], d_q)
                if sink is not None:
                    share = (sink - lse).exp2_().mul_(off).sum((1, 2, 3, 5, 6)).flatten()
                    d_sinks = -share if d_sinks is None else d_sinks - share
            n_steps = [piece.shape[3] for piece in pieces[::2]]
            d_pairs = zip(*(whole.split(n_steps, dim=3) for whole in d_own), strict=True)
            d_pieces = [d.to(x.dtype) for d_pair in d_pairs for d, x in zip(d_pair, (key, value), strict=True)]
            d_key = d_key.div_(BITS).transpose(0, 1).to(key.dtype)
            d_value = d_value.transpose(0, 1).to(value.dtype)
        d_sinks = None if d_sinks is None else d_sinks.to(sinks.dtype)
        return d_query, d_key, d_value, d_sinks, None, None, None, None, *d_pieces


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Return a batched matrix product times a factor."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=factor)


def _add_product_(to: Tensor, a: Tensor, b: Tensor, factor: float = 1.0) -> None:
    """Add a batched matrix product times a factor, in place and in float32."""
    if a.dtype == torch.float32:
        to.baddbmm_(a, b, alpha=factor)
    else:
        to.add_(torch.bmm(a, b), alpha=factor)


def _mask(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _sink(sinks: Tensor | None, heads: tuple[int, int]) -> Tensor | None:
    """Return the sinks [H] in bits, as [J, 1, 1, 1, G, 1, 1]."""
    return None if sinks is None else BITS * sinks.float().view(heads[0], 1, 1, 1, heads[1], 1, 1)


def _through(
    scores: Tensor, lse: Tensor, d_p: Tensor, offset: Tensor, softcap: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return, in place of scores and d_p, the probabilities and the gradient of the scores before softcapping."""
    slope = None if softcap is None else 1 - (scores / (softcap * BITS)).clamp_(-1, 1).square_()
    p = scores.sub_(lse).exp2_()
    d_scores = d_p.sub_(offset).mul_(p)
    if slope is not None:
        d_scores.mul_(slope)
    return p.to(dtype), d_scores.to(dtype)
