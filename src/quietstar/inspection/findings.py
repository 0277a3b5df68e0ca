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
    label: str
    n: int
    """positions"""
    n_same: int
    """positions at which the replacement equals the thought"""
    delta: Estimate | None
    """change in the true next token's log-probability, nats"""
    kl: Estimate | None
    """nats"""
    flips: Estimate | None
    """share of positions whose likeliest token changed"""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Positions of similar difficulty."""

    by: str
    """base nll (of the next token) or base entropy, in nats"""
    low: float
    high: float
    n: int
    gain: Estimate
    reward: Estimate | None
    interventions: list[Effects]


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary of a trace."""

    n_positions: int
    n_thoughts: int
    gain: Estimate | None
    """gain of the model's own thoughts; None if no thought's next token is known"""
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
    mixing_weight: Estimate | None
    interventions: list[Effects]
    difficulty: list[Difficulty]
    is_own: bool
    """whether the model generated the text; it then agrees with its own predictions, and a gain means nothing"""
    sentences: list[str]
