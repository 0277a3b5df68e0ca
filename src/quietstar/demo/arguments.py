"""What can be set in the demo."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from quietstar.config import QuietStarConfig
from quietstar.demo.language import DASH, N_STOPS
from quietstar.errors import SettingsError


@dataclass(kw_only=True)
class DemoArguments:
    """Settings of the demo. The defaults tell the story in about a minute on two CPU cores.

    Raises:
        SettingsError: a value is impossible.
    """

    _argument_group_name: ClassVar[str] = "demo"

    output_dir: str = field(default="runs/demo", metadata={"help": "folder of the run; it must not hold one already"})
    overwrite: bool = field(default=False, metadata={"help": "empty an output_dir that holds an earlier run of ours"})
    seed: int = field(
        default=0, metadata={"help": "decides the language's moves, what is held out, weights and thoughts"}
    )
    held_out: float = field(default=0.2, metadata={"help": "share of the problems that no training sees"})
    steps: int = field(default=400, metadata={"help": "steps in which the base model learns the language"})
    batch_size: int = field(default=64, metadata={"help": "lines in each of those steps"})
    learning_rate: float = field(default=4e-3, metadata={"help": "peak learning rate of those steps"})
    thought_steps: int = field(default=50, metadata={"help": "steps in which Quiet-STaR teaches it to think"})
    thought_batch_size: int = field(default=32, metadata={"help": "lines in each of those steps"})
    thought_learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of those steps"})
    n_ahead: int = field(
        default=N_STOPS + 2,
        metadata={
            "help": "tokens of a thought, start and end included; n_ahead - 2 are sampled, "
            f"and a way has {N_STOPS} letters"
        },
    )
    n_passes: int = field(
        default=2, metadata={"help": "thoughts sampled for each position in training, to be compared"}
    )
    policy_weight: float = field(
        default=1e6,
        metadata={"help": "weight of the policy loss beside the nll; 0 leaves REINFORCE out"},
    )
    inspected: int = field(
        default=100, metadata={"help": "held-out problems whose thoughts are traced and tried to be replaced"}
    )
    picture: bool = field(default=True, metadata={"help": "draw the figures, which needs matplotlib"})

    def __post_init__(self) -> None:
        for name, lowest in {
            "steps": 0,
            "thought_steps": 0,
            "batch_size": 1,
            "thought_batch_size": 1,
            "inspected": 1,
        }.items():
            if getattr(self, name) < lowest:
                raise SettingsError(f"{name} is {getattr(self, name)}; give a number of at least {lowest}")
        for name in ("learning_rate", "thought_learning_rate"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0.01 <= self.held_out <= 0.9:
            raise SettingsError(f"held_out is {self.held_out}; give a share from 0.01 to 0.9")
        QuietStarConfig(**self.method_settings())

    def method_settings(self) -> dict[str, Any]:
        """Settings of the thinking model."""
        return {
            "n_ahead": self.n_ahead,
            "n_ahead_talk": 1,  # what a thought is for, the answer, is one letter
            "n_passes": self.n_passes,
            "policy_weight": self.policy_weight,
            "reinforce_temperature": 3.0,
            "initial_thought_text": DASH,
            # at the demo's learning rate, 100 times a step of Adam would throw the dash away in its first steps
            "embedding_scale": 1.0,
        }
