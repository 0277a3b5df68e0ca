"""A curriculum: the stages of a run, with thoughts of another length in each (Fast Quiet-STaR, arXiv 2505.17746)."""

import math
from dataclasses import dataclass
from typing import Any

from quietstar.config import check_n_ahead
from quietstar.errors import SettingsError, shown
from quietstar.runs.fields import option
from quietstar.training.arguments import METHOD, QuietStarTrainingArguments
from quietstar.training.data.arguments import DataArguments
from quietstar.training.model_arguments import ModelArguments

CHOSEN_BY = "eval_talk_nll_0"
"""nll of the next token of held-out text after a thought, by which the best model of a stage is chosen"""


@dataclass(kw_only=True)
class CurriculumArguments:
    """Stages of a run; without them, it is one.

    Raises:
        SettingsError: a value is impossible.
    """

    curriculum: str | None = option(
        None,
        "train in stages, given as n_ahead:n_ahead_talk, such as 16:8,12:4,8:4; each begins with the best model of the "
        "one before",
        METHOD,
    )
    curriculum_steps: str | None = option(
        None, "steps of the stages, such as 150 or 150,100,100 (default: --max_steps each)", METHOD
    )
    curriculum_learning_rates: str | None = option(
        None, "learning rates of the stages, such as 2e-6,1e-6,1e-6 (default: --learning_rate)", METHOD
    )
    curriculum_keep_optimizer: bool = option(
        False, "each stage goes on with the optimizer's moments of the one before, instead of none", METHOD
    )

    def __post_init__(self) -> None:
        if self.curriculum is None:
            given = [name for name, value in vars(self).items() if value]
            if given:
                value = shown(getattr(self, given[0]))
                raise SettingsError(f"{given[0]} is {value}, and there is no curriculum; give one, or leave it out")
            return
        self.of_each("curriculum_steps", int, 1)
        self.of_each("curriculum_learning_rates", float, 1.0)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """n_ahead and n_ahead_talk of each stage."""
        found = []
        for stage in str(self.curriculum).split(","):
            numbers = stage.strip().split(":")
            if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
                raise SettingsError(
                    f"curriculum has stage {shown(stage)}; give n_ahead:n_ahead_talk of each, such as 16:8,12:4,8:4 "
                    "(in quotes in a YAML file)"
                )
            n_ahead, n_ahead_talk = map(int, numbers)
            check_n_ahead(n_ahead)
            if n_ahead_talk < 1:
                raise SettingsError(f"curriculum has stage {shown(stage)}; give an n_ahead_talk of at least 1")
            found.append((n_ahead, n_ahead_talk))
        return found

    def of_each(self, name: str, kind: type, default: float) -> list[Any]:
        """Return the number that an option gives each stage: one for all of them, or one for each, or the default."""
        text, n = getattr(self, name), len(self.lengths)
        if text is None:
            return [default] * n
        try:
            numbers = [kind(number) for number in str(text).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, n) or not all(0 < number < math.inf for number in numbers):
            what = "learning rate" if kind is float else "number of steps"
            several = f", or {n} with commas between them" if n > 1 else ""
            raise SettingsError(f"{name} is {shown(text)}; give one {what} above 0{several}")
        return numbers * n if len(numbers) == 1 else numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of a curriculum."""

    number: int
    n_stages: int
    n_ahead: int
    n_ahead_talk: int
    max_steps: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"stage-{self.number}"

    @property
    def name_of_earlier(self) -> str:
        """Name of the folder of the stage before, which there is from the second on."""
        return f"stage-{self.number - 1}"

    @property
    def settings(self) -> dict[str, Any]:
        """What it changes in the arguments of a run."""
        names = ("n_ahead", "n_ahead_talk", "max_steps", "learning_rate")
        return {name: getattr(self, name) for name in names}

    @property
    def words(self) -> str:
        """For messages."""
        return (
            f"stage {self.number} of {self.n_stages}: n_ahead {self.n_ahead}, n_ahead_talk {self.n_ahead_talk}, "
            f"{self.max_steps:,} steps at a learning rate of {self.learning_rate:g}"
        )


def stages_of(curriculum: CurriculumArguments, args: QuietStarTrainingArguments) -> list[Stage]:
    """Return the stages of a run; what the curriculum does not say is as in its other arguments."""
    lengths = curriculum.lengths
    steps = curriculum.of_each("curriculum_steps", int, args.max_steps)
    rates = curriculum.of_each("curriculum_learning_rates", float, args.learning_rate)
    return [
        Stage(
            number=index + 1,
            n_stages=len(lengths),
            n_ahead=n_ahead,
            n_ahead_talk=n_ahead_talk,
            max_steps=steps[index],
            learning_rate=rates[index],
        )
        for index, (n_ahead, n_ahead_talk) in enumerate(lengths)
    ]


def check_curriculum(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    curriculum: CurriculumArguments,
) -> None:
    """Raise SettingsError if options do not go with a curriculum."""
    saves = args.save_strategy != "no"
    if not saves or (args.save_only_model and curriculum.curriculum_keep_optimizer):
        name = "save_only_model" if saves else "save_strategy no"
        raise SettingsError(f"{name} was given, and a curriculum needs checkpoints; leave it out")
    if args.eval_delay:
        raise SettingsError(f"eval_delay is {args.eval_delay}, and a stage chooses among its evaluations; leave it out")
    for name in ("n_ahead", "n_ahead_talk", "n_ahead_min"):
        if getattr(args, name) is not None:
            raise SettingsError(
                f"{name} is {getattr(args, name)}, and the curriculum gives lengths of thoughts; leave one out"
            )
    if model_args.original or model_args.load_in_4bit:
        name = "original" if model_args.original else "load_in_4bit"
        raise SettingsError(f"{name} does not go with a curriculum; leave one out")
    if args.max_steps < 1:
        raise SettingsError(f"max_steps is {args.max_steps}, and the stages of a curriculum have steps; give a number")
    if args.named_checkpoint is not None:
        raise SettingsError("resume_from_checkpoint names a checkpoint of one stage; give --resume for a curriculum")
    if args.eval_strategy == "no" or (data_args.eval_dataset is None and data_args.eval_size == 0):
        raise SettingsError(
            "a curriculum chooses the best model of each stage on held-out text, and there is none; give an eval_size "
            "or eval_dataset, and an eval_strategy"
        )
    if args.metric_for_best_model not in (None, "loss", CHOSEN_BY):
        raise SettingsError(
            f"metric_for_best_model is {args.metric_for_best_model}, and a curriculum chooses models by {CHOSEN_BY}; "
            "leave it out"
        )
    if args.greater_is_better and args.metric_for_best_model is not None:
        raise SettingsError("greater_is_better is True, and the best model of a stage has the lowest nll; leave it out")
