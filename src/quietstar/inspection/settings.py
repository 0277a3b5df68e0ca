"""What is traced, and how."""

from dataclasses import dataclass

from quietstar.checks import check_sampling
from quietstar.errors import SettingsError
from quietstar.inspection.interventions import CHOICES, interventions_of
from quietstar.policy import Decider, ThinkPolicy


@dataclass(slots=True, kw_only=True)
class TextToTrace:
    """A text, and what is known of its thoughts already."""

    ids: list[int]
    """S tokens"""
    first: int = 0
    """thoughts may be had from this position on"""
    stop: int | None = None
    """and up to the one before this; None for the end"""
    thoughts: dict[int, list[int]] | None = None
    """what was thought at which positions, K tokens each; None lets the model think"""
    reasons: dict[int, str] | None = None
    """why, where thoughts are given"""


@dataclass(slots=True, kw_only=True)
class TraceSettings:
    """How texts are thought about, and what else is tried.

    Raises:
        SettingsError: a value is impossible.
    """

    think: str | Decider | ThinkPolicy = "always"
    """where to think"""
    thought_temperature: float = 0.0
    thought_top_p: float = 1.0
    n_ahead_talk: int | None = None
    """M of rewards; None is the model's"""
    top_k: int = 5
    """likeliest tokens that are kept of each prediction"""
    interventions: tuple[str, ...] = CHOICES
    """names of what is tried in the thoughts' place"""
    thought: str | None = None
    """a thought to try in the place of every thought"""
    filler: str | None = None
    """text whose token is the filler; None: a dot where the tokenizer has one, else padding"""
    seed: int = 0
    """of everything that is drawn"""

    def __post_init__(self) -> None:
        ThinkPolicy.parse(self.think)
        check_sampling(self.thought_temperature, self.thought_top_p)
        for name in ("n_ahead_talk", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; give a number of at least 1")
        interventions_of(list(self.interventions), 0, False)  # says which is unknown
