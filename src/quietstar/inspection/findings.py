"""The findings about the thoughts of a trace, in numbers and sentences."""

from dataclasses import dataclass

from quietstar.reporting.interval import Estimate

FEWEST = 30
"""least positions for a conclusion; with fewer, a bootstrap interval is too narrow and is replaced by ±infinity"""
NEGLIGIBLE = 0.001
"""nats; a gain whose whole interval is below this is negligible, and is not split"""


@dataclass(frozen=True, slots=True)
class Effects:
    """The effects of one intervention.

    The estimates are None if it could not be done, or if every replacement equals the thought.
    """

    name: str
    """such as filler, or truncated_2"""
    label: str
    """what replaces a thought"""
    n: int
    """positions"""
    n_same: int
    """positions at which the replacement equals the thought"""
    delta: Estimate | None
    """change in the true next token's log-probability, nats"""
    kl: Estimate | None
    """KL(prediction with the thought || prediction with the replacement), nats"""
    flips: Estimate | None
    """share of positions whose likeliest token changed"""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Positions of similar difficulty."""

    by: str
    """base nll (of the next token) or base entropy, in nats"""
    low: float
    """least difficulty, nats"""
    high: float
    """difficulty that they are below, nats"""
    n: int
    """positions"""
    gain: Estimate
    """nats"""
    reward: Estimate | None
    """nats; None if no reward is known"""
    interventions: list[Effects]
    """of each intervention"""


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary of a trace; differences of log-probabilities are in nats."""

    n_positions: int
    """positions in the trace"""
    n_thoughts: int
    """those with a thought"""
    gain: Estimate | None
    """log-probability of the true next token with the thought, minus that without; None if no thought's next token is
    known"""
    content: Estimate | None
    """the part of the gain that filler loses"""
    computation: Estimate | None
    """the part of the gain that filler keeps"""
    content_share: Estimate | None
    """content / gain, as a ratio of means; None if there is no clear gain, or the parts have opposite signs"""
    nll_before: Estimate | None
    """nats, of the model before training; None if unknown"""
    over_before: Estimate | None
    """log-probability with thoughts, minus that before training"""
    base_over_before: Estimate | None
    """log-probability without thoughts, minus that before training: below 0 if the base pass has become worse"""
    reward: Estimate | None
    """as in training, before any length_price"""
    mixing_weight: Estimate | None
    """of the thought in the prediction of the next token"""
    interventions: list[Effects]
    """of each intervention that was tried"""
    difficulty: list[Difficulty]
    """positions by the base nll of their next token, then by the entropy of the base prediction"""
    is_own: bool
    """whether the model generated the text; it then agrees with its own predictions, and a gain means nothing"""
    sentences: list[str]
    """all of it in words"""
