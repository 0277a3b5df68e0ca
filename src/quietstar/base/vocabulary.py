"""An LM head a few states at a time, so that [tokens, V] never exists, and tokens drawn from its logits.

A block of logits has the vocabulary first, [V, states]: on a CPU its product is made 15 % faster so.

Legend: n states, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quietstar.base.precision import product_dtype

BYTES_AT_ONCE = {"cpu": 2**25, "cuda": 2**29}
"""size of a block of logits in float32"""

STATES = 64
"""blocks have a multiple of so many states; for losses they are filled up to it: a state's sums are then rounded alike
wherever it stands, and a thought that changes nothing is rewarded with exactly nothing"""

BLOCK = 256
"""words whose probabilities are summed before a drawn number is looked for among them"""


@dataclass(slots=True)
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
    _scratch: Tensor | None = field(default=None, init=False, repr=False)
    _cast: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """[V, D], without gradient, made once where the dtype is another one (under autocast)."""
        if dtype not in self._cast:
            self._cast[dtype] = self.weight.detach().to(dtype)
        return self._cast[dtype]

    def scratch(self, n_states: int) -> Tensor:
        """[V, n_states] in float32, for a block of logits.

        On a CPU it is the same memory each time: new pages of it cost more than what is computed in them.
        """
        size = n_states * len(self.weight)
        if self._scratch is not None and self._scratch.numel() >= size:
            return self._scratch[:size].view(-1, n_states)
        made = torch.empty(size, dtype=torch.float32, device=self.weight.device)
        if made.device.type == "cpu":
            self._scratch = made
        return made.view(-1, n_states)


def bend(logits: Tensor, factor: float, divisor: float, softcap: float | None) -> Tensor:
    """[..., V] products of an LM head and states, with bias -> [..., V] logits; see LMHead."""
    if factor != 1:
        logits = logits * factor
    if divisor != 1:
        logits = logits / divisor
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class Blocks:
    """Logits of [n, D] states, some states at a time, in memory that every block writes over.

    Iterating gives the slices of states.

    Args:
        head: the LM head.
        hidden: [n, D]
        filled_to: blocks are filled up to a multiple of so many states.
    """

    def __init__(self, head: LMHead, hidden: Tensor, filled_to: int = 1) -> None:
        device = hidden.device.type
        self.dtype = product_dtype(head.weight)
        self.head, self.hidden, self.weight = head, hidden.detach().to(self.dtype), head.weight_in(self.dtype)
        self.filled_to = filled_to
        fitting = BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cpu"]) // (4 * len(self.weight))
        self.n_states = max(STATES, fitting - fitting % STATES)

    def __iter__(self) -> Iterator[slice]:
        return (slice(first, first + self.n_states) for first in range(0, len(self.hidden), self.n_states))

    def filled(self, of: Tensor) -> Tensor:
        """[states, ...] -> zeros after them, where a block is filled up."""
        missing = -len(of) % self.filled_to
        return torch.cat([of, of.new_zeros(missing, *of.shape[1:])]) if missing else of

    def logits(self, some: slice) -> Tensor:
        """[V, filled states] in float32; the next call writes over it."""
        hidden, head = self.filled(self.hidden[some]), self.head
        out = head.scratch(len(hidden))
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            if self.dtype == torch.float32:
                torch.mm(self.weight, hidden.T, out=out)
            else:
                out.copy_(self.weight @ hidden.T)
            if head.bias is not None:
                out += head.bias[:, None]
            return bend(out, head.factor, head.divisor, head.softcap)


def draw(
    head: LMHead,
    hidden: Tensor,
    temperature: float,
    suppressed: Tensor | None = None,
    generator: torch.Generator | None = None,
    n_draws: int = 1,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw tokens from each state's prediction, or take the likeliest at temperature 0; no gradient.

    Args:
        head: the LM head.
        hidden: [n, D]
        temperature: at least 0.
        suppressed: ids that are never drawn.
        generator: source of one uniform number a token, on the states' device.
        n_draws: m, tokens for each state.
        top_p: draw among the likeliest tokens that together reach this probability (arXiv 1904.09751), above 0.

    Returns:
        [n, m] token ids, and [n, m] their log-probabilities in what they were drawn from: 0 at temperature 0.
    """
    uniform = torch.zeros(len(hidden), n_draws, device=hidden.device)
    if temperature:
        uniform.uniform_(generator=generator)
    with torch.no_grad():
        blocks = Blocks(head, hidden)
        drawn = [choose_(blocks.logits(some), uniform[some], temperature, suppressed, top_p) for some in blocks]
    if not drawn:
        return uniform.long(), uniform
    tokens, logprob = zip(*drawn, strict=True)
    return torch.cat(tokens), torch.cat(logprob)


def choose_(
    logits: Tensor, uniform: Tensor, temperature: float, suppressed: Tensor | None = None, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The tokens at which the cumulative distribution passes the given numbers, or the likeliest at temperature 0.

    Noise of vocabulary size is never made. A number is looked for among the sums of blocks of words first, then
    within one block.

    Args:
        logits: [V, n] in float32, written over.
        uniform: [n, m], from 0 to below 1.
        temperature: at least 0.
        suppressed: ids that are never chosen.
        top_p: see `draw`.

    Returns:
        [n, m] token ids, and [n, m] their log-probabilities in what they were drawn from: 0 at temperature 0.
    """
    n, m = uniform.shape
    if suppressed is not None and suppressed.numel():
        logits.index_fill_(0, suppressed, -torch.inf)
    if temperature == 0:
        block = _by_block(logits, torch.amax).argmax(-1, keepdim=True)
        word = _words_of(logits, block, -torch.inf).argmax(-1)
    else:
        logits.sub_(logits.amax(dim=0))
        if temperature != 1:
            logits /= temperature
        p = logits.exp_()  # times a total
        if top_p < 1:
            leave_nucleus_(p, top_p)
        sums = _by_block(p, torch.sum)
        block, left = _pass(sums, uniform * sums.sum(-1, keepdim=True))
        word, _ = _pass(_words_of(p, block, 0.0).flatten(0, 1), left.reshape(n * m, 1))
    # NaN is found nowhere; the loss will show it
    tokens = (block * BLOCK + word.view_as(block)).clamp(max=len(logits) - 1).expand(n, m)
    if temperature == 0:
        return tokens, torch.zeros_like(uniform)
    return tokens, (p.gather(0, tokens.T).T / sums.sum(-1, keepdim=True)).log()


def leave_nucleus_(p: Tensor, top_p: float) -> None:
    """Set what lies outside the likeliest words that together reach top_p to 0: [V, n], each state's sum any."""
    mass, word = p.sort(dim=0, descending=True)
    before = mass.cumsum(dim=0) - mass
    p.scatter_(0, word, mass.masked_fill_(before >= top_p * p.sum(dim=0), 0))


def _by_block(of_words: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """[V, n] -> [n, blocks]: what each block of words comes to."""
    n_whole, n_rest = divmod(len(of_words), BLOCK)
    whole, rest = of_words.split([n_whole * BLOCK, n_rest])
    reduced = [reduce(whole.unflatten(0, (n_whole, BLOCK)), dim=1)]
    return torch.cat([*reduced, reduce(rest, dim=0, keepdim=True)] if n_rest else reduced).T


def _words_of(of_words: Tensor, block: Tensor, beyond: float) -> Tensor:
    """[V, n] and blocks [n, m] -> [n, m, BLOCK]: their words, `beyond` where the vocabulary is at its end."""
    V, (n, m) = len(of_words), block.shape
    words = block[..., None] * BLOCK + torch.arange(BLOCK, device=block.device)
    found = of_words.gather(0, words.clamp(max=V - 1).flatten(1).T).T.reshape(n, m, BLOCK)
    return found.masked_fill_(words >= V, beyond)


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
