"""Texts to trace, and the settings of a trace."""

from collections.abc import Sequence
from dataclasses import dataclass

from quietstar.config import check_n_ahead
from quietstar.errors import SettingsError
from quietstar.inspection.interventions import CHOICES, FILLER, interventions_of
from quietstar.policy import Decider, ThinkPolicy
from quietstar.text.unicode import check_text
from quietstar.think import check_sampling


@dataclass(slots=True, kw_only=True)
class TextToTrace:
    """A text, with its thoughts if they are known already."""

    ids: list[int]
    """S tokens"""
    may_think: Sequence[int] | None = None
    """positions at which the model may think; None for all"""
    thoughts: dict[int, list[int]] | None = None
    """recorded thoughts, K tokens each, by position, regardless of `may_think`; None lets the model think"""
    reasons: dict[int, str] | None = None
    """reason for each recorded thought"""
    labels: list[int] | None = None
    """S labels, IGNORED (-100) for tokens that are not predicted; None for all tokens"""
    before_logprob: list[float | None] | None = None
    """S recorded log-probabilities of each next token before training; None computes them"""
    is_own: bool = False
    """whether the model generated the text, which then agrees with its own predictions"""


@dataclass(slots=True, kw_only=True)
class TraceSettings:
    """How the model thinks, and which interventions are tried.

    Raises:
        SettingsError: a value is impossible.
    """

    think: str | Decider | ThinkPolicy = "always"
    """where to think: a policy, or a function of a Moment"""
    thought_temperature: float = 0.0
    """at which thoughts are sampled; 0 takes the likeliest tokens"""
    thought_top_p: float = 1.0
    """thought tokens are sampled from the likeliest that together reach this probability"""
    n_ahead: int | None = None
    """tokens of a thought, start and end included; None is the model's"""
    n_ahead_talk: int | None = None
    """true tokens that a reward is summed over; None is the model's"""
    top_k: int = 5
    """number of likeliest tokens recorded for each prediction"""
    interventions: tuple[str, ...] = CHOICES
    """replacements of each thought to try: removed, filler, shuffled, swapped (another position's), random, truncated;
    by default all"""
    thought: str | None = None
    """a thought to try in the place of every thought"""
    filler: str | None = None
    """text of one token, used as filler; None: a dot if the tokenizer has one, else padding"""
    seed: int = 0
    """seed of all sampling"""

    def __post_init__(self) -> None:
        ThinkPolicy.parse(self.think)
        for name in ("thought_temperature", "thought_top_p"):
            if not isinstance(getattr(self, name), int | float):
                raise SettingsError(f"{name} is {getattr(self, name)!r}; give a number")
        check_sampling(self.thought_temperature, self.thought_top_p)
        if self.n_ahead is not None:
            check_n_ahead(self.n_ahead)
        for name, lowest in {"n_ahead_talk": 1, "top_k": 1, "seed": 0}.items():
            value = getattr(self, name)
            if name == "n_ahead_talk" and value is None:
                continue
            if not isinstance(value, int) or not lowest <= value < 2**63:
                raise SettingsError(f"{name} is {value!r}; give a whole number of at least {lowest}")
        if isinstance(self.interventions, str):
            self.interventions = (self.interventions,)
        interventions_of(list(self.interventions), 0, False)  # raises for unknown names
        for name in ("thought", "filler"):
            check_text(name, getattr(self, name))
        if self.filler is not None and FILLER not in self.interventions:
            raise SettingsError(
                f"filler was given, but {FILLER} is not among the interventions; add it, or leave filler out"
            )
