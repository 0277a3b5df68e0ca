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
    """An LM head by its parts: logits = softcap(weight h + bias) with the base model's factors; see `Trunk.head`."""

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


def bend(logits: Tensor, factor: float, divisor: float, softcap: float | None) -> Tensor:
    """[..., V] products of an LM head and states, with bias -> [..., V] logits; see LMHead."""
    if factor != 1:
        logits = logits * factor
    if divisor != 1:
        logits = logits / divisor
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def draw(
    head: LMHead,
    hidden: Tensor,
    temperature: float,
    suppressed: Tensor | None = None,
    generator: torch.Generator | None = None,
    n_draws: int = 1,
) -> Tensor:
    """Draw tokens from each state's prediction, or take the likeliest at temperature 0; no gradient.

    Args:
        head: the LM head.
        hidden: [n, D]
        temperature: at least 0.
        suppressed: ids that are never drawn.
        generator: source of one uniform number a token, on the states' device.
        n_draws: m, tokens for each state.

    Returns:
        [n, m] token ids.
    """
    uniform = torch.zeros(len(hidden), n_draws, device=hidden.device)
    if temperature:
        uniform.uniform_(generator=generator)
    with torch.no_grad():
        blocks = _Blocks(head, hidden)
        tokens = [choose(blocks.logits(rows), uniform[rows], temperature, suppressed) for rows in blocks]
    return torch.cat(tokens) if tokens else uniform.long()


def choose(logits: Tensor, uniform: Tensor, temperature: float, suppressed: Tensor | None = None) -> Tensor:
    """The tokens at which the cumulative distribution passes the given numbers, or the likeliest at temperature 0.

    Noise of vocabulary size is never made. A number is looked for among the sums of blocks of words first, then
    within one block.

    Args:
        logits: [n, V] in float32.
        uniform: [n, m], from 0 to below 1.
        temperature: at least 0.
        suppressed: ids that are never chosen.

    Returns:
        [n, m] token ids.
    """
    n, m = uniform.shape
    V = logits.shape[-1]
    if suppressed is not None and suppressed.numel():
        logits = logits.index_fill(-1, suppressed, -torch.inf)
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True).expand(n, m)
    p = torch.softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    n_whole = V // BLOCK
    sums = p[:, : n_whole * BLOCK].unflatten(1, (n_whole, BLOCK)).sum(-1)
    sums = torch.cat([sums, p[:, n_whole * BLOCK :].sum(-1, keepdim=True)], dim=1)
    block, left = _pass(sums, uniform * sums.sum(-1, keepdim=True))
    words = block[..., None] * BLOCK + torch.arange(BLOCK, device=p.device)  # [n, m, BLOCK]
    inside = p.gather(1, words.clamp(max=V - 1).flatten(1)).view_as(words).masked_fill_(words >= V, 0)
    word, _ = _pass(inside.flatten(0, 1), left.reshape(n * m, 1))
    # NaN is found nowhere; the loss will show it
    return (block * BLOCK + word.view(n, m)).clamp(max=V - 1)


def _pass(masses: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sum of masses [n, x] passes points [n, m], and how far these are into that mass: both [n, m].

    A mass of 0 is never where it passes, as rounding may not lift the point past all of them.
    """
    cumulative = masses.cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    at = torch.searchsorted(cumulative, point, right=True).clamp(max=masses.shape[-1] - 1)
    before = torch.where(at > 0, cumulative.gather(1, (at - 1).clamp(min=0)), 0)
    return at, point - before


def token_logprob(
    head: LMHead,
    hidden: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    suppressed: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """log softmax(logits / temperature) of the given tokens, in float32. No logits are kept.

    Args:
        head: the LM head.
        hidden: [n, D]
        tokens: [n]
        temperature: above 0.
        suppressed: ids that have no probability, None for none.
        weights: [n], what each value weighs in the loss. For a loss that is their weighted sum, times anything,
            gradients are made along with the values, and one of the weight's size is kept until the backward pass;
            for every other loss the logits are made a second time.

    Returns:
        [n]
    """
    if not torch.is_grad_enabled() or hidden.dtype == torch.float16 or head.weight.dtype == torch.float16:
        weights = None  # float16 has no room for gradients that a loss scale has not reached yet
    return _TokenLogprob.apply(hidden, head.weight, head.bias, tokens, weights, head, temperature, suppressed)


def masked_logprob(
    head: LMHead,
    hidden: Tensor,
    tokens: Tensor,
    where: Tensor,
    temperature: float = 1.0,
    suppressed: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """token_logprob of tokens [...] from states [..., D] where a mask [...] is true; 0 elsewhere."""
    weights = None if weights is None else weights[where]
    values = token_logprob(head, hidden[where], tokens[where], temperature, suppressed, weights)
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
        fitting = max(1, BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cpu"]) // (4 * V))
        self.n_rows = min(len(hidden), fitting - fitting % 64 or fitting)  # products like even sizes
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
        return bend(out, self.head.factor, self.head.divisor, self.head.softcap)


class _Gradients:
    """Gradients of states, weight and bias, put together from those of blocks of logits; None where none is needed.

    Sums over blocks are in float32, whatever the parameters are in.
    """

    def __init__(self, blocks: _Blocks, hidden: Tensor, needed: tuple[bool, ...]) -> None:
        head = self.head = blocks.head
        self.blocks = blocks
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros(head.weight.shape, device=hidden.device) if needed[1] else None
        self.bias = None if head.bias is None or not needed[2] else torch.zeros(head.bias.shape, device=hidden.device)

    def add(self, rows: slice, d_logits: Tensor, scale: Tensor) -> None:
        """Take in some rows' gradient of logits, [rows, V] times a scale [rows, 1]."""
        blocks = self.blocks
        if self.bias is not None:
            self.bias += (d_logits.T @ scale).squeeze(1)
        d_logits = d_logits.to(blocks.dtype)
        if self.hidden is not None:
            self.hidden[rows] = (d_logits @ blocks.weight).float() * scale
        if self.weight is not None:
            scaled = (blocks.hidden[rows].float() * scale).to(blocks.dtype)
            if blocks.dtype == torch.float32:
                self.weight.addmm_(d_logits.T, scaled)
            else:
                self.weight += d_logits.T @ scaled

    def times(self, factor: Tensor | float) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All three, times a factor, in the dtypes of what they are gradients of; done in place, so once only."""
        pairs = ((self.hidden, self.hidden), (self.weight, self.head.weight), (self.bias, self.head.bias))
        return tuple(d if d is None else d.mul_(factor).to(of.dtype) for d, of in pairs)  # type: ignore[return-value, union-attr]


class _TokenLogprob(torch.autograd.Function):
    """d logits = (one-hot - p) d logprob / temperature, through the factors and the bending of the head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        weights: Tensor | None,
        head: LMHead,
        temperature: float,
        suppressed: Tensor | None,
    ) -> Tensor:
        blocks = _Blocks(head, hidden)
        chosen, lse = (torch.empty(len(hidden), 1, dtype=torch.float32, device=hidden.device) for _ in range(2))
        gradients = None if weights is None else _Gradients(blocks, hidden, ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in blocks:
                logits = blocks.logits(rows)
                slope = None if gradients is None else _slope(logits, head)
                logits = _tempered_(logits, temperature, suppressed)
                chosen[rows] = logits.gather(1, tokens[rows, None])
                highest = logits.amax(-1, keepdim=True)
                p = logits.sub_(highest).exp_()
                total = p.sum(-1, keepdim=True)
                lse[rows] = total.log().add_(highest)
                if gradients is not None:
                    scale = -weights[rows, None] / total  # type: ignore[index]
                    gradients.add(rows, _d_logits_(p, total, tokens[rows], slope), scale)
        ctx.save_for_backward(hidden, weight, bias, tokens, weights, lse, suppressed)
        ctx.settings = head, temperature, blocks.dtype
        ctx.gradients = gradients
        return (chosen - lse).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprob: Tensor) -> tuple[Tensor | None, ...]:
        hidden, _, _, tokens, weights, lse, suppressed = ctx.saved_tensors
        head, temperature, dtype = ctx.settings
        scale = head.factor / head.divisor / temperature
        made, ctx.gradients = ctx.gradients, None
        if made is not None and len(d_logprob):
            times = (d_logprob * weights).sum() / weights.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
            if (d_logprob - times * weights).abs().max() <= 1e-5 * d_logprob.abs().max():
                return *made.times(times * scale), None, None, None, None, None
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=dtype != head.weight.dtype):
            blocks = _Blocks(head, hidden)
        gradients = _Gradients(blocks, hidden, ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in blocks:
                logits = blocks.logits(rows)
                slope = _slope(logits, head)
                p = _tempered_(logits, temperature, suppressed).sub_(lse[rows]).exp_()
                gradients.add(rows, _d_logits_(p, 1.0, tokens[rows], slope), -d_logprob[rows, None])
        return *gradients.times(scale), None, None, None, None, None


def _d_logits_(p: Tensor, total: Tensor | float, tokens: Tensor, slope: Tensor | None) -> Tensor:
    """In place: probabilities [n, V] times a total -> total times the gradient of - logprob by tempered logits."""
    d_logits = p.scatter_add_(1, tokens[:, None], torch.zeros_like(p[:, :1]) - total)
    return d_logits if slope is None else d_logits.mul_(slope)


def _slope(logits: Tensor, head: LMHead) -> Tensor | None:
    """What bending the logits does to their gradient; None without."""
    return None if head.softcap is None else 1 - (logits / head.softcap).square_()


def _tempered_(logits: Tensor, temperature: float, suppressed: Tensor | None) -> Tensor:
    """In place: logits / temperature, -inf for suppressed ids."""
    if temperature != 1:
        logits /= temperature
    return logits if suppressed is None else logits.index_fill_(-1, suppressed, -torch.inf)
