"""What is traced, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from quietstar.errors import SettingsError
from quietstar.inspection.interventions import CHOICES, FILLER, interventions_of
from quietstar.policy import Decider, ThinkPolicy
from quietstar.text.unicode import check_text
from quietstar.think import check_sampling


@dataclass(slots=True, kw_only=True)
class TextToTrace:
    """A text, and what is known of its thoughts already."""

    ids: list[int]
    """S tokens"""
    may_think: Sequence[int] | None = None
    """positions at which there may be a thought; None for all"""
    thoughts: dict[int, list[int]] | None = None
    """what was thought at which positions, K tokens each, whatever `may_think` says; None lets the model think"""
    reasons: dict[int, str] | None = None
    """why, where thoughts are given"""
    labels: list[int] | None = None
    """S, IGNORED (-100) at tokens that are not to be predicted; None for all of them"""
    before_logprob: list[float | None] | None = None
    """S, log-probability of each next token before training, where that was written down; None works it out"""
    is_own: bool = False
    """whether the model wrote it: it then follows by its own predictions"""


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
    """text of one token, the filler; None: a dot where the tokenizer has one, else padding"""
    seed: int = 0
    """of everything that is drawn"""

    def __post_init__(self) -> None:
        ThinkPolicy.parse(self.think)
        for name in ("thought_temperature", "thought_top_p"):
            if not isinstance(getattr(self, name), int | float):
                raise SettingsError(f"{name} is {getattr(self, name)!r}; give a number")
        check_sampling(self.thought_temperature, self.thought_top_p)
        for name, lowest in {"n_ahead_talk": 1, "top_k": 1, "seed": 0}.items():
            value = getattr(self, name)
            if name == "n_ahead_talk" and value is None:
                continue
            if not isinstance(value, int) or not lowest <= value < 2**63:
                raise SettingsError(f"{name} is {value!r}; give a whole number of at least {lowest}")
        if isinstance(self.interventions, str):
            self.interventions = (self.interventions,)
        interventions_of(list(self.interventions), 0, False)  # says which is unknown
        for name in ("thought", "filler"):
            check_text(name, getattr(self, name))
        if self.filler is not None and FILLER not in self.interventions:
            raise SettingsError(
                f"filler was given, and {FILLER} is not among the interventions; add it, or leave it out"
            )
