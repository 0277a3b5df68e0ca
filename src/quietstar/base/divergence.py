"""How far predictions are from a teacher's, over the whole vocabulary, from the logits of a few states at a time.

    kl          sum over tokens of p (log p - log q), p the teacher's prediction: q covers all that p does
    reverse_kl  sum over tokens of q (log q - log p): q keeps to what p holds likely

A teacher is known by its states, or by its likeliest tokens and what remains for all others together. The divergence of
such coarse predictions is never above that of whole ones (data-processing inequality).

Logits, softmax and sums are in float32 whatever the dtype of an LM head.

Legend: n states, P predictions that are averaged, k tokens, D hidden size, V vocabulary, m states of a block.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quietstar.base.logprob import gradients_of
from quietstar.base.vocabulary import STATES, Blocks, LMHead

KINDS = ("kl", "reverse_kl")


class Target(Protocol):
    """A teacher's predictions at n states."""

    def compare(self, logq: Tensor, some: slice, *, reverse: bool) -> tuple[Tensor, Tensor]:
        """Return the divergences [m] of predictions, and their gradients [V, m] at the logits of these.

        Args:
            logq: [V, m] log-probabilities, overwritten by the gradients.
            some: the m states of the n.
            reverse: whether it is the reverse one.
        """
        ...


@dataclass(frozen=True, slots=True)
class Spoken:
    """Whole predictions, from the states that predict them: the mean over P of each token's probability."""

    head: LMHead
    hidden: Tensor
    """[P, n, D]"""
    dtype: torch.dtype | None = None
    """of the products of states and head; None for the head's own"""

    def logprob(self, some: slice) -> Tensor:
        """Return log-probabilities [V, m]."""
        P = len(self.hidden)
        found: Tensor | None = None
        for hidden in self.hidden:
            logits = Blocks(self.head, hidden[some], dtype=self.dtype).logits(slice(None))
            each = logits.log_softmax(0)
            found = each if found is None else torch.logaddexp(found, each)
        assert found is not None
        return found if P == 1 else found.sub_(math.log(P))

    def compare(self, logq: Tensor, some: slice, *, reverse: bool) -> tuple[Tensor, Tensor]:
        """Return divergences and gradients; see Target."""
        logp = self.logprob(some)
        if reverse:
            q = logq.exp()
            ratio = logq.sub_(logp)
            value = (q * ratio).sum(0)
            return value, q.mul_(ratio.sub_(value))
        p = logp.exp()
        value = (p * logp.sub_(logq)).sum(0)
        return value, logq.exp_().sub_(p)


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens of predictions, and what remains for all others."""

    tokens: Tensor
    """[n, k]"""
    logprob: Tensor
    """[n, k]"""
    rest: Tensor
    """[n] log-probability of all other tokens together"""

    @classmethod
    def of(cls, target: Spoken, k: int) -> "Likeliest":
        """Return the k likeliest tokens of whole predictions."""
        n, V = target.hidden.shape[1], len(target.head.weight)
        found = []
        for some in Blocks(target.head, target.hidden[0], dtype=target.dtype):
            logp = target.logprob(some)
            logprob, tokens = logp.topk(min(k, V - 1), dim=0)
            rest = logp.scatter_(0, tokens, -torch.inf).logsumexp(0)
            found.append((tokens.T, logprob.T, rest))
        if not n:
            nothing = target.hidden.new_zeros(0, min(k, V - 1), dtype=torch.float32)
            return cls(nothing.long(), nothing, nothing[:, 0])
        return cls(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def compare(self, logq: Tensor, some: slice, *, reverse: bool) -> tuple[Tensor, Tensor]:
        """Return divergences and gradients; see Target."""
        tokens, logp, rest = self.tokens[some].T, self.logprob[some].T, self.rest[some]
        own = logq.gather(0, tokens)
        own_rest = logq.scatter(0, tokens, -torch.inf).logsumexp(0)
        ratio, ratio_of_rest = own - logp, own_rest - rest
        if reverse:
            value = (own.exp() * ratio).sum(0) + own_rest.exp() * ratio_of_rest
            gradient = logq.exp_().mul_(ratio_of_rest - value)
            return value, gradient.scatter_(0, tokens, own.exp() * (ratio - value))
        value = -(logp.exp() * ratio).sum(0) - rest.exp() * ratio_of_rest
        given = (logq - ratio_of_rest).exp()  # what the teacher holds of each other token, if they share as here
        gradient = logq.exp_().sub_(given)
        return value, gradient.scatter_(0, tokens, own.exp() - logp.exp())


@torch.compiler.disable  # as token_logprob
def divergence(head: LMHead, hidden: Tensor, target: Target, kind: str = "kl") -> Tensor:
    """Return the divergence [n] in nats of the predictions at states [n, D] from a teacher's, at the same states.

    No logits are kept; the backward pass recomputes them.
    """
    return _Divergence.apply(hidden, head.weight, head.bias, head, target, kind == "reverse_kl")


class _Compared:
    """A block of states: their divergences, and the gradients of these at their logits."""

    def __init__(self, blocks: Blocks, some: slice, target: Target, reverse: bool) -> None:
        logits, head = blocks.logits(some), blocks.head
        self.n_states = min(len(blocks.hidden), some.stop) - some.start
        logits = logits[:, : self.n_states]
        slope = None if head.softcap is None else 1 - (logits / head.softcap).square_()
        self.value, d_logits = target.compare(logits.log_softmax(0), some, reverse=reverse)
        self.d_logits = d_logits if slope is None else d_logits.mul_(slope)
        self.total = torch.ones_like(self.value)[None]

    def d_logits_(self) -> Tensor:
        """Return the gradients [V, m]."""
        return self.d_logits


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LMHead,
        target: Target,
        reverse: bool,
    ) -> Tensor:
        blocks = Blocks(head, hidden, STATES)
        with torch.autocast(hidden.device.type, enabled=False):
            values = [_Compared(blocks, some, target, reverse).value for some in blocks]
        ctx.save_for_backward(hidden, weight, bias)
        ctx.settings = head, target, reverse, blocks.dtype
        return torch.cat(values) if values else torch.zeros(0, device=hidden.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        head, target, reverse, dtype = ctx.settings
        blocks = Blocks(head, hidden, STATES, dtype=dtype)

        def compared(some: slice) -> _Compared:
            return _Compared(blocks, some, target, reverse)

        weights = d_value * (head.factor / head.divisor)
        gradients = gradients_of(blocks, (hidden, weight, bias), ctx.needs_input_grad[:3], compared, weights)
        return *gradients, None, None, None
