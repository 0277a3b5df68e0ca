"""What is found out about the thoughts of a trace, in numbers and in words."""

from dataclasses import dataclass

from quietstar.reporting.interval import Estimate

FEWEST = 30
"""positions below which nothing is concluded, and a mean's interval is the whole line: it would be too narrow"""
NEGLIGIBLE = 0.001
"""nats: a gain that surely is smaller is next to nothing, and is not divided up"""


@dataclass(frozen=True, slots=True)
class Effects:
    """What one intervention did.

    The figures are None where it could not be done, and where it put every thought in its own place.
    """

    name: str
    label: str
    n: int
    """positions"""
    n_same: int
    """positions at which what was put in the thought's place is the thought itself"""
    delta: Estimate | None
    """change in the true next token's log-probability, nats"""
    kl: Estimate | None
    """nats"""
    flips: Estimate | None
    """share of positions whose likeliest token became another one"""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Positions of like difficulty."""

    by: str
    """base nll (of the token that follows) or base entropy, in nats"""
    low: float
    high: float
    n: int
    gain: Estimate
    reward: Estimate | None
    interventions: list[Effects]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a trace."""

    n_positions: int
    n_thoughts: int
    gain: Estimate | None
    """of the model's own thoughts; None where no thought's next token is known"""
    content: Estimate | None
    """the part that filler loses"""
    computation: Estimate | None
    """the part that filler has as well"""
    content_share: Estimate | None
    """content by gain, as a ratio of means; None where there is no gain to divide, or a part works against the other"""
    nll_before: Estimate | None
    """nats, of the model before it was trained; None where that is not known"""
    over_before: Estimate | None
    """log-probability with thoughts, minus that before training"""
    base_over_before: Estimate | None
    """log-probability without thoughts, minus that before training: below 0 where the base pass has become worse"""
    reward: Estimate | None
    mixing_weight: Estimate | None
    interventions: list[Effects]
    difficulty: list[Difficulty]
    is_own: bool
    """whether the model wrote the text: what follows then follows by its own predictions, and no gain is a finding"""
    sentences: list[str]
