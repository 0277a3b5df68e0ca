"""The next token of each text in a batch, each drawn by its own settings and from its own random numbers.

Legend: B texts, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
"""temperatures below it take the likeliest token: logits divided by less are not finite"""
NOTHING = -1
"""in place of a token, where a prediction is not finite"""


@dataclass(slots=True)
class Drawing:
    """How one text's tokens are drawn."""

    temperature: float
    """0 takes the likeliest token"""
    top_p: float = 1.0
    """draw among the likeliest tokens that together reach this probability"""
    generator: torch.Generator | None = None
    """source of random numbers, on the model's device"""


def choose(logits: Tensor, drawings: Sequence[Drawing], suppressed: Tensor | None = None) -> list[int]:
    """A token for each of B texts; NOTHING where there is none to choose.

    A text's token does not depend on the other texts. It is what `generate` of transformers draws from the same
    random numbers.

    Args:
        logits: [B, V]
        drawings: B of them.
        suppressed: [n] ids that are never chosen.
    """
    logits = logits.float()
    if suppressed is not None:
        logits = logits.index_fill(1, suppressed, -torch.inf)
    is_sound = (logits < torch.inf).all(-1) & (logits > -torch.inf).any(-1)
    tokens = logits.argmax(-1).where(is_sound, NOTHING).tolist()
    for row, how in enumerate(drawings):
        if tokens[row] != NOTHING and how.temperature >= GREEDY_BELOW:
            tokens[row] = _draw(logits[row : row + 1], how)
    return tokens


def _draw(logits: Tensor, how: Drawing) -> int:
    """Of one text, [1, V]."""
    logits = logits / how.temperature
    if how.top_p < 1:
        rising, ids = logits.sort(-1)
        outside = rising.softmax(-1).cumsum(-1) <= 1 - how.top_p
        outside[:, -1] = False
        logits = logits.masked_fill(outside.scatter(1, ids, outside), -torch.inf)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=how.generator))
