"""Options of `quietstar demo --discover`."""

from dataclasses import dataclass
from typing import Any

from quietstar.config import MIXING, QuietStarConfig
from quietstar.demo.discover.world import MOVES, N_AHEAD
from quietstar.demo.language import DASH, EQUALS, LETTERS
from quietstar.demo.lessons import Course
from quietstar.errors import SettingsError
from quietstar.learn import PolicyWeight
from quietstar.runs.fields import check_above_0, check_at_least, check_values, option

DISCOVER = "demo --discover"
"""the group of these options in `--help`"""
ARMS = ("positive", "leave_one_out", "no_policy")
"""two advantages, and no policy loss, under which all advantages are the same"""

LOWEST = {
    "n_seeds": 1,
    "spelled_one_in": 3,
    "layers": 1,
    "steps": 0,
    "batch_size": 1,
    "thought_steps": 1,
    "thought_batch_size": 1,
    "measure_every": 1,
}
"""option -> lowest value"""


@dataclass(kw_only=True)
class DiscoverArguments:
    """Options of `--discover`. With the defaults it takes about ten minutes on two CPU cores.

    Raises:
        SettingsError: a value is invalid.
    """

    output_dir: str = option("runs/discover", "folder of the run; it must not have one already", DISCOVER)
    overwrite: bool = option(False, "empty output_dir if it has an earlier run", DISCOVER)
    arms: list[str] = option(
        list(ARMS), "arms to run: positive and leave_one_out, which are advantages, and no_policy", DISCOVER, ARMS
    )
    n_seeds: int = option(3, "runs of each arm, each in a language of its own", DISCOVER)
    seed: int = option(0, "seed of the first of them; the others follow", DISCOVER)
    held_out: float = option(0.2, "fraction of the problems to hold out of both trainings", DISCOVER)
    spelled_one_in: int = option(50, "one line of pretraining in so many spells its scratch letter out", DISCOVER)
    layers: int = option(1, "layers of the base model; one alone cannot make two moves", DISCOVER)
    steps: int = option(1600, "training steps in which the base model learns the language", DISCOVER)
    batch_size: int = option(64, "lines in each of those steps", DISCOVER)
    learning_rate: float = option(2e-3, "peak learning rate of those steps", DISCOVER)
    thought_steps: int = option(500, "training steps in which Quiet-STaR teaches it to think", DISCOVER)
    thought_batch_size: int = option(32, "lines in each of those steps", DISCOVER)
    thought_learning_rate: float = option(5e-4, "learning rate of those steps", DISCOVER)
    n_passes: int = option(4, "thoughts sampled and compared at each position in training", DISCOVER)
    policy_weight: str = option(
        "100", "weight of the policy loss beside the nll where it is on: a number, or balanced:R", DISCOVER
    )
    nll_weight: float = option(1.0, "weight of the nll beside it", DISCOVER)
    thought_temperature: float = option(
        3.0, "temperature at which thoughts are sampled in training, and scored in the policy loss", DISCOVER
    )
    mixing: str = option(
        "head", "how predictions are mixed: head, or thought, which uses the one after it", DISCOVER, MIXING
    )
    start_text: str = option(EQUALS, "character as whose embedding the start of a thought begins", DISCOVER)
    end_text: str = option(
        DASH, "character as whose embedding its end begins; the default closes spelled scratch letters, too", DISCOVER
    )
    measure_every: int = option(25, "steps between two measurements", DISCOVER)
    picture: bool = option(True, "draw the figures, which needs matplotlib", DISCOVER)

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least(self, LOWEST)
        check_above_0(self, ("learning_rate", "thought_learning_rate", "thought_temperature"))
        if not 0.01 <= self.held_out <= 0.9:
            raise SettingsError(f"held_out is {self.held_out}; give a fraction from 0.01 to 0.9")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise SettingsError(f"arms is {' '.join(self.arms) or 'empty'}; choose from {', '.join(ARMS)}, each once")
        characters = LETTERS + MOVES + EQUALS + DASH
        for name in ("start_text", "end_text"):
            if len(text := getattr(self, name)) != 1 or text not in characters:
                raise SettingsError(f"{name} is {text!r}; give one character of {characters}")
        for arm in self.arms:
            QuietStarConfig(**self.method_settings(arm))

    def language_course(self, seed: int) -> Course:
        """Return how the base model of a seed is trained."""
        return Course(
            output_dir=self.output_dir,
            seed=seed,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )

    def thought_course(self, seed: int) -> Course:
        """Return how it is then taught to think. The learning rate stays, as a thought may be found late."""
        return Course(
            output_dir=self.output_dir,
            seed=seed,
            steps=self.thought_steps,
            batch_size=self.thought_batch_size,
            learning_rate=self.thought_learning_rate,
            schedule="constant_with_warmup",
        )

    def method_settings(self, arm: str) -> dict[str, Any]:
        """Return the settings of the thinking model of an arm."""
        is_off = arm == "no_policy"
        return {
            "n_ahead": N_AHEAD,
            "n_ahead_talk": 1,
            "n_passes": self.n_passes,
            "advantage": "positive" if is_off else arm,
            "policy_weight": 0.0 if is_off else PolicyWeight.parse(self.policy_weight).setting,
            "nll_weight": self.nll_weight,
            "thought_temperature": self.thought_temperature,
            "reinforce_temperature": self.thought_temperature,
            "mixing": self.mixing,
            "initial_thought_text": self.start_text,
            "embedding_scale": 1.0,
        }
