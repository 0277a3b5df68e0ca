"""Samples the next token of each text in a batch, each with its own settings and its own random numbers.

Legend: B texts, V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
"""lower temperatures are greedy, as dividing logits by them could overflow"""
NO_TOKEN = -1
"""takes the place of a token if the logits are not finite"""


@dataclass(slots=True)
class TokenSampling:
    """How the tokens of one text are sampled."""

    temperature: float
    """0 is greedy"""
    top_p: float = 1.0
    """sample from the likeliest tokens whose probabilities add up to this"""
    generator: torch.Generator | None = None
    """random number generator, on the model's device"""
    frequency_penalty: float = 0.0
    """taken from a token's logit for each time that the text has it already"""
    presence_penalty: float = 0.0
    """taken from the logits of all tokens that the text has already"""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """token id -> added to its logit"""
    written: Counter[int] = field(default_factory=Counter)
    """how often the text has each token; prompt and thoughts do not count"""

    @property
    def changes(self) -> dict[int, float]:
        """Token id -> what penalties and biases add to its logit."""
        changes = dict(self.logit_bias)
        if self.frequency_penalty or self.presence_penalty:
            for token, n in self.written.items():
                penalty = n * self.frequency_penalty + self.presence_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        return changes


def choose(logits: Tensor, samplings: Sequence[TokenSampling], suppressed: Tensor | None = None) -> list[int]:
    """Return a token for each of B texts from logits [B, V], or NO_TOKEN if its logits are not finite.

    A text's token does not depend on the other texts, and equals what transformers' `generate` samples from the same
    random numbers. The ids [n] in `suppressed` are never sampled.
    """
    logits = _changed(logits.float(), [sampling.changes for sampling in samplings])
    if suppressed is not None:
        logits = logits.index_fill(1, suppressed, -torch.inf)
    is_finite = (logits < torch.inf).all(-1) & (logits > -torch.inf).any(-1)
    tokens = logits.argmax(-1).where(is_finite, NO_TOKEN).tolist()
    for row, sampling in enumerate(samplings):
        if tokens[row] != NO_TOKEN and sampling.temperature >= GREEDY_BELOW:
            tokens[row] = _sample(logits[row : row + 1], sampling)
    return tokens


def _changed(logits: Tensor, changes: Sequence[dict[int, float]]) -> Tensor:
    """Return logits [B, V] to which each row's changes were added."""
    entries = [(row, token, value) for row, each in enumerate(changes) for token, value in each.items()]
    if not entries:
        return logits
    rows, tokens, values = (torch.tensor(each, device=logits.device) for each in zip(*entries, strict=True))
    return logits.index_put((rows, tokens), values.to(logits.dtype), accumulate=True)


def _sample(logits: Tensor, sampling: TokenSampling) -> int:
    """Sample a token of one text from logits [1, V]."""
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        ascending, ids = logits.sort(-1)
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        outside[:, -1] = False
        logits = logits.masked_fill(outside.scatter(1, ids, outside), -torch.inf)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=sampling.generator))
