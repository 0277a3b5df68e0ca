"""Options of the demo."""

from dataclasses import dataclass
from typing import Any

from quietstar.config import QuietStarConfig
from quietstar.demo.language import DASH, N_STOPS
from quietstar.demo.lessons import Course
from quietstar.errors import SettingsError
from quietstar.runs.fields import check_above_0, check_at_least, option

DEMO = "demo"
"""the group of these options in `--help`"""


@dataclass(kw_only=True)
class DemoArguments:
    """Options of the demo. With the defaults it takes about a minute on two CPU cores.

    Raises:
        SettingsError: a value is invalid.
    """

    output_dir: str = option("runs/demo", "folder of the run; it must not have one already", DEMO)
    overwrite: bool = option(False, "empty output_dir if it has an earlier run", DEMO)
    seed: int = option(0, "seed of the language's moves, the held-out problems, the weights and the thoughts", DEMO)
    held_out: float = option(0.2, "fraction of the problems to hold out of both trainings", DEMO)
    steps: int = option(400, "training steps in which the base model learns the language", DEMO)
    batch_size: int = option(64, "lines in each of those steps", DEMO)
    learning_rate: float = option(4e-3, "peak learning rate of those steps", DEMO)
    thought_steps: int = option(50, "training steps in which Quiet-STaR teaches it to think", DEMO)
    thought_batch_size: int = option(32, "lines in each of those steps", DEMO)
    thought_learning_rate: float = option(5e-4, "peak learning rate of those steps", DEMO)
    n_ahead: int = option(
        N_STOPS + 2,
        f"tokens of a thought, start and end included; n_ahead - 2 are sampled, and a way has {N_STOPS} letters",
        DEMO,
    )
    n_passes: int = option(2, "thoughts sampled and compared at each position in training", DEMO)
    policy_weight: float = option(1e6, "weight of the policy loss beside the nll; 0 turns REINFORCE off", DEMO)
    inspected: int = option(100, "held-out problems whose thoughts are traced and replaced", DEMO)
    picture: bool = option(True, "draw the figures, which needs matplotlib", DEMO)

    def __post_init__(self) -> None:
        lowest = {"steps": 0, "thought_steps": 0, "batch_size": 1, "thought_batch_size": 1, "inspected": 1}
        check_at_least(self, lowest)
        check_above_0(self, ("learning_rate", "thought_learning_rate"))
        if not 0.01 <= self.held_out <= 0.9:
            raise SettingsError(f"held_out is {self.held_out}; give a fraction from 0.01 to 0.9")
        QuietStarConfig(**self.method_settings())

    def language_course(self) -> Course:
        """Return how the base model is trained."""
        return Course(
            output_dir=self.output_dir,
            seed=self.seed,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )

    def thought_course(self) -> Course:
        """Return how it is then taught to think."""
        return Course(
            output_dir=self.output_dir,
            seed=self.seed,
            steps=self.thought_steps,
            batch_size=self.thought_batch_size,
            learning_rate=self.thought_learning_rate,
        )

    def method_settings(self) -> dict[str, Any]:
        """Return the settings of the thinking model."""
        return {
            "n_ahead": self.n_ahead,
            "n_ahead_talk": 1,  # a thought helps with the answer, which is one letter
            "n_passes": self.n_passes,
            "policy_weight": self.policy_weight,
            "reinforce_temperature": 3.0,
            "initial_thought_text": DASH,
            # at the demo's learning rate, steps 100 times as large would lose the dash at once
            "embedding_scale": 1.0,
        }
