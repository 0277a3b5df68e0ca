"""What is done with a whole vocabulary of logits: drawing a token, and the log-probability of a given one.

Both go through the states a few rows at a time, so that [tokens, V] never exists, and both compute in float32
whatever the LM head's dtype.

Legend: n states, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BYTES_AT_ONCE = {"cpu": 2**25, "cuda": 2**29}
"""size of a block of logits in float32: on a CPU within what the allocator hands out again without new pages"""

BLOCK = 256
"""words whose probabilities are summed before a drawn number is looked for among them"""


@dataclass(frozen=True, slots=True)
class LMHead:
    """An LM head by its parts: logits = softcap(weight h + bias) with the base model's factors.

    Raises nothing; made by `Trunk.head`.
    """

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None = None
    """[V]"""
    factor: float = 1.0
    """logits are multiplied by it"""
    divisor: float = 1.0
    """logits are divided by it"""
    softcap: float | None = None
    """logits are bent to stay within it"""

    def finish(self, logits: Tensor) -> Tensor:
        """[..., V] products of weight and states, with bias -> [..., V] logits."""
        if self.factor != 1:
            logits = logits * self.factor
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def draw(
    head: LMHead,
    hidden: Tensor,
    temperature: float,
    suppressed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token from each state's prediction, or take the likeliest at temperature 0; no gradient.

    Args:
        head: the LM head.
        hidden: [n, D]
        temperature: at least 0.
        suppressed: ids that are never drawn.
        generator: source of one uniform number a row, on the states' device.

    Returns:
        [n] token ids.
    """
    uniform = torch.rand(len(hidden), generator=generator, device=hidden.device)
    with torch.no_grad():
        blocks = _Blocks(head, hidden)
        tokens = [choose(blocks.logits(rows), uniform[rows], temperature, suppressed) for rows in blocks]
    return torch.cat(tokens) if tokens else uniform.long()


def choose(logits: Tensor, uniform: Tensor, temperature: float, suppressed: Tensor | None = None) -> Tensor:
    """The tokens at which the cumulative distribution passes the given numbers, or the likeliest at temperature 0.

    Noise of vocabulary size is never made. The number is looked for among the sums of blocks of words first, then
    within one block.

    Args:
        logits: [n, V] in float32.
        uniform: [n], from 0 to below 1.
        temperature: at least 0.
        suppressed: ids that are never chosen.

    Returns:
        [n] token ids.
    """
    V = logits.shape[-1]
    if suppressed is not None and suppressed.numel():
        logits = logits.index_fill(-1, suppressed, -torch.inf)
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = torch.softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    n_whole = V // BLOCK
    sums = p[:, : n_whole * BLOCK].unflatten(1, (n_whole, BLOCK)).sum(-1)
    sums = torch.cat([sums, p[:, n_whole * BLOCK :].sum(-1, keepdim=True)], dim=1)
    block, left = _pass(sums, uniform[:, None] * sums.sum(-1, keepdim=True))
    words = block * BLOCK + torch.arange(BLOCK, device=p.device)  # [n, BLOCK]
    inside = p.gather(1, words.clamp(max=V - 1)).masked_fill_(words >= V, 0)
    word, _ = _pass(inside, left)
    # NaN is found nowhere; the loss will show it
    return (block * BLOCK + word).squeeze(-1).clamp(max=V - 1)


def _pass(masses: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sum of masses [n, m] passes a point [n, 1], and how far it is into that mass: both [n, 1].

    A mass of 0 is never where it passes, as rounding may not lift the point past all of them.
    """
    cumulative = masses.cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    at = torch.searchsorted(cumulative, point, right=True).clamp(max=masses.shape[-1] - 1)
    before = torch.where(at > 0, cumulative.gather(1, (at - 1).clamp(min=0)), 0)
    return at, point - before


def token_logprob(
    head: LMHead, hidden: Tensor, tokens: Tensor, temperature: float = 1.0, suppressed: Tensor | None = None
) -> Tensor:
    """log softmax(logits / temperature) of the given tokens, in float32. Logits are made again for the gradient.

    Args:
        head: the LM head.
        hidden: [n, D]
        tokens: [n]
        temperature: above 0.
        suppressed: ids that have no probability, None for none.

    Returns:
        [n]
    """
    return _TokenLogprob.apply(hidden, head.weight, head.bias, tokens, head, temperature, suppressed)  # type: ignore[no-untyped-call,no-any-return]


def masked_logprob(
    head: LMHead,
    hidden: Tensor,
    tokens: Tensor,
    where: Tensor,
    temperature: float = 1.0,
    suppressed: Tensor | None = None,
) -> Tensor:
    """token_logprob of tokens [...] from states [..., D] where a mask [...] is true; 0 elsewhere."""
    values = token_logprob(head, hidden[where], tokens[where], temperature, suppressed)
    return torch.zeros(tokens.shape, device=values.device).masked_scatter(where, values)


class _Blocks:
    """Logits of [n, D] states, a block of rows at a time, in one buffer that every block writes over.

    Iterating gives the slices of rows.
    """

    def __init__(self, head: LMHead, hidden: Tensor) -> None:
        device = hidden.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
        self.head, self.hidden, self.weight = head, hidden.to(self.dtype), head.weight.to(self.dtype)
        V = len(self.weight)
        self.n_rows = min(len(hidden), max(1, BYTES_AT_ONCE.get(device, 2**25) // (4 * V)))
        self.buffer = torch.empty(self.n_rows, V, dtype=torch.float32, device=hidden.device)

    def __iter__(self) -> Iterator[slice]:
        return (slice(row, row + self.n_rows) for row in range(0, len(self.hidden), self.n_rows or 1))

    def logits(self, rows: slice) -> Tensor:
        """[rows, V] in float32; the next call writes over it."""
        hidden = self.hidden[rows]
        out = self.buffer[: len(hidden)]
        with torch.autocast(hidden.device.type, enabled=False):
            if self.dtype == torch.float32:
                torch.mm(hidden, self.weight.T, out=out)
            else:
                out.copy_(hidden @ self.weight.T)
        if self.head.bias is not None:
            out += self.head.bias
        head = self.head
        if head.factor != 1:
            out *= head.factor
        if head.divisor != 1:
            out /= head.divisor
        return out if head.softcap is None else out.div_(head.softcap).tanh_().mul_(head.softcap)


class _TokenLogprob(torch.autograd.Function):
    """d logits = (one-hot - p) d logprob / temperature, through the factors and the bending of the head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        head: LMHead,
        temperature: float,
        suppressed: Tensor | None,
    ) -> Tensor:
        blocks = _Blocks(head, hidden)
        chosen, lse = (torch.empty(len(hidden), 1, dtype=torch.float32, device=hidden.device) for _ in range(2))
        for rows in blocks:
            logits = _tempered_(blocks.logits(rows), temperature, suppressed)
            chosen[rows] = logits.gather(1, tokens[rows, None])
            highest = logits.amax(-1, keepdim=True)
            lse[rows] = logits.sub_(highest).exp_().sum(-1, keepdim=True).log_().add_(highest)
        ctx.save_for_backward(hidden, weight, bias, tokens, lse, suppressed)
        ctx.settings = head.factor, head.divisor, head.softcap, temperature, blocks.dtype
        return (chosen - lse).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprob: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, lse, suppressed = ctx.saved_tensors
        factor, divisor, softcap, temperature, dtype = ctx.settings
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head = LMHead(weight.to(dtype), bias, factor, divisor, softcap)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        # sums over blocks in float32, whatever the parameters are in
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_weight else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if needs_bias else None
        d_logprob = (d_logprob.float() * (factor / divisor / temperature))[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            blocks = _Blocks(head, hidden)
            for rows in blocks:
                logits = blocks.logits(rows)
                slope = None if softcap is None else 1 - (logits / softcap).square_()
                d_logits = _tempered_(logits, temperature, suppressed).sub_(lse[rows]).exp_().mul_(-d_logprob[rows])
                d_logits.scatter_add_(1, tokens[rows, None], d_logprob[rows])
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                low = d_logits.to(dtype)
                if d_hidden is not None:
                    d_hidden[rows] = low @ head.weight
                if d_weight is not None and dtype == torch.float32:
                    d_weight.addmm_(low.T, blocks.hidden[rows])
                elif d_weight is not None:
                    d_weight += low.T @ blocks.hidden[rows]
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


def _tempered_(logits: Tensor, temperature: float, suppressed: Tensor | None) -> Tensor:
    """In place: logits / temperature, -inf for suppressed ids."""
    if temperature != 1:
        logits /= temperature
    return logits if suppressed is None else logits.index_fill_(-1, suppressed, -torch.inf)
