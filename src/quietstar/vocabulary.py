"""An LM head a few rows of logits at a time, so that [tokens, V] never exists, and tokens drawn from them.

Legend: n states, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

BYTES_AT_ONCE = {"cpu": 2**25, "cuda": 2**29}
"""size of a block of logits in float32"""

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

    def scratch(self, n_rows: int) -> Tensor:
        """[n_rows, V] in float32, for a block of logits.

        On a CPU it is the same memory each time: new pages of it cost more than what is computed in them.
        """
        if self._scratch is not None and len(self._scratch) >= n_rows:
            return self._scratch[:n_rows]
        made = torch.empty(n_rows, len(self.weight), dtype=torch.float32, device=self.weight.device)
        if made.device.type == "cpu":
            self._scratch = made
        return made


def bend(logits: Tensor, factor: float, divisor: float, softcap: float | None) -> Tensor:
    """[..., V] products of an LM head and states, with bias -> [..., V] logits; see LMHead."""
    if factor != 1:
        logits = logits * factor
    if divisor != 1:
        logits = logits / divisor
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class Blocks:
    """Logits of [n, D] states, a block of rows at a time, in memory that every block writes over.

    Iterating gives the slices of rows.
    """

    def __init__(self, head: LMHead, hidden: Tensor) -> None:
        device = hidden.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
        self.head, self.hidden, self.weight = head, hidden.to(self.dtype), head.weight.to(self.dtype)
        fitting = max(1, BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cpu"]) // (4 * len(self.weight)))
        self.n_rows = min(len(hidden), fitting - fitting % 64 or fitting)  # products like even sizes
        self.scratch = head.scratch(self.n_rows)

    def __iter__(self) -> Iterator[slice]:
        return (slice(row, row + self.n_rows) for row in range(0, len(self.hidden), self.n_rows or 1))

    def logits(self, rows: slice) -> Tensor:
        """[rows, V] in float32; the next call writes over it."""
        hidden, head = self.hidden[rows], self.head
        out = self.scratch[: len(hidden)]
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            if self.dtype == torch.float32:
                torch.mm(hidden, self.weight.T, out=out)
            else:
                out.copy_(hidden @ self.weight.T)
            if head.bias is not None:
                out += head.bias
            return bend(out, head.factor, head.divisor, head.softcap)


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
        blocks = Blocks(head, hidden)
        tokens = [choose_(blocks.logits(rows), uniform[rows], temperature, suppressed) for rows in blocks]
    return torch.cat(tokens) if tokens else uniform.long()


def choose_(logits: Tensor, uniform: Tensor, temperature: float, suppressed: Tensor | None = None) -> Tensor:
    """The tokens at which the cumulative distribution passes the given numbers, or the likeliest at temperature 0.

    Noise of vocabulary size is never made. A number is looked for among the sums of blocks of words first, then
    within one block.

    Args:
        logits: [n, V] in float32, written over.
        uniform: [n, m], from 0 to below 1.
        temperature: at least 0.
        suppressed: ids that are never chosen.

    Returns:
        [n, m] token ids.
    """
    n, m = uniform.shape
    V = logits.shape[-1]
    if suppressed is not None and suppressed.numel():
        logits.index_fill_(-1, suppressed, -torch.inf)
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True).expand(n, m)
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    if temperature != 1:
        logits /= temperature
    p = logits.exp_()  # times a total
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
