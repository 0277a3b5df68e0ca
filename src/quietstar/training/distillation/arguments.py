"""Options of `quietstar distill`: who teaches whom, and what is learned."""

from dataclasses import dataclass
from typing import Any

from quietstar.base.divergence import KINDS
from quietstar.config import check_n_ahead
from quietstar.errors import SettingsError
from quietstar.policy import ThinkPolicy
from quietstar.runs.fields import check_at_least, check_values, option
from quietstar.think import check_sampling
from quietstar.training.model_arguments import MODEL

LEARNED = "what is learned"
LESSON = (
    "objective", "reward_weight", "teacher_digest", "teacher_think", "teacher_n_ahead", "teacher_passes",
    "teacher_temperature", "cache_tokens",
)  # fmt: skip
"""settings that decide what is learned from a teacher; a run without one has None for all"""
FAST, PLAIN = "fast", "nll"
"""objectives that need no whole predictions: one number a token, or none, as `quietstar train --original`"""
OBJECTIVES = (*KINDS, FAST, PLAIN)


@dataclass(kw_only=True)
class DistillArguments:
    """Who teaches whom, and what is learned.

    Raises:
        SettingsError: a value is impossible.
    """

    student: str | None = option(
        None,
        "model that learns, with the teacher's tokenizer: hub name, folder or GGUF file (default: the teacher's own "
        "base model as it is now)",
        MODEL,
    )
    objective: str = option(
        "kl",
        "kl: divergence from the teacher's prediction; reverse_kl; fast: the text, more so where the student is better "
        "than the teacher; nll: the text alone, a control",
        LEARNED,
        OBJECTIVES,
    )
    reward_weight: float = option(1.0, "of fast: weight of the reward", LEARNED)
    teacher_think: str = option("always", "where the teacher thinks, such as always or entropy:2.5", LEARNED)
    teacher_n_ahead: int | None = option(None, "tokens of its thoughts, start and end included", LEARNED)
    teacher_passes: int = option(1, "sampled thoughts whose predictions are averaged; 1 is one greedy thought", LEARNED)
    teacher_temperature: float = option(1.0, "at which several thoughts are sampled", LEARNED)
    cache: str | None = option(
        None, "folder that keeps what the teacher said of each row: it is asked once for all epochs and runs", LEARNED
    )
    cache_tokens: int = option(
        64, "likeliest tokens that are kept of each prediction; the rest's mass is kept, too", LEARNED
    )

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least(self, {"reward_weight": 0, "teacher_passes": 1, "cache_tokens": 1})
        if self.cache is not None and self.objective in (FAST, PLAIN):
            raise SettingsError(f"a cache keeps predictions, and {self.objective} learns from none; leave it out")
        for name, default, is_used, of in (
            ("reward_weight", 1.0, self.objective == FAST, "objective fast"),
            ("cache_tokens", 64, self.cache is not None, "a cache"),
            ("teacher_temperature", 1.0, self.teacher_passes > 1, "teacher_passes above 1"),
        ):
            if (value := getattr(self, name)) != default and not is_used:
                raise SettingsError(f"{name} is {value}, and is of {of} alone; leave it out")
        ThinkPolicy.parse(self.teacher_think)
        if self.teacher_n_ahead is not None:
            check_n_ahead(self.teacher_n_ahead, "teacher_n_ahead")
        check_sampling(self.teacher_temperature, 1.0)
        if self.teacher_passes > 1 and self.teacher_temperature == 0:
            raise SettingsError(
                f"teacher_passes is {self.teacher_passes} at teacher_temperature 0, and greedy thoughts are all alike; "
                "give a teacher_temperature above 0, or one pass"
            )

    @property
    def way_to_think(self) -> dict[str, Any]:
        """What decides what the teacher says."""
        names = ("teacher_think", "teacher_n_ahead", "teacher_passes", "teacher_temperature")
        return {name: getattr(self, name) for name in names}
