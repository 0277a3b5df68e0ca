"""The command of each run: an arm and a seed as a command line of `quietstar train`, which could be run by hand."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from quietstar.errors import SettingsError
from quietstar.runs.options import OneLineParser, as_flags, parse
from quietstar.study.arms import PLAIN, THINKING, Arm
from quietstar.study.recipe import Recipe
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.data.arguments import DataArguments
from quietstar.training.model import thought_options
from quietstar.training.model_arguments import ModelArguments

METRIC = {THINKING: "eval_talk_nll_0", PLAIN: "eval_base_nll"}
"""kind of arm -> nll of the next token as it predicts, on the selection text"""


@dataclass(frozen=True, slots=True)
class Command:
    """A run of `quietstar train`."""

    argv: list[str]
    model: ModelArguments
    data: DataArguments
    args: QuietStarTrainingArguments

    @classmethod
    def of(cls, argv: list[str], parser: OneLineParser) -> "Command":
        """Return the command of a command line."""
        return cls(argv, *parse(parser, argv, ModelArguments, DataArguments, QuietStarTrainingArguments))

    @property
    def line(self) -> str:
        """As a shell would have it."""
        return shlex.join(["quietstar", "train", *self.argv])


def command_of(recipe: Recipe, arm: Arm, seed: int, folder: Path, parser: OneLineParser) -> Command:
    """Return the command of a run, which writes into a folder and resumes there.

    Raises:
        SettingsError: an option is impossible, or options do not fit each other.
    """
    name = f"the options of arm {arm.name}"
    own = {
        "model": recipe.model,
        "dataset": recipe.dataset,
        "eval_dataset": recipe.selection,
        "output_dir": str(folder),
        "seed": seed,
        "resume": True,
        "streaming": False,
        "load_best_model_at_end": True,
        "metric_for_best_model": METRIC[arm.kind],
        "thoughts_shown": 0,
    }
    argv = [*as_flags(name, own, parser), *as_flags(name, recipe.train_options(arm), parser)]
    command = Command.of(argv, parser)
    if arm.kind == PLAIN:
        if given := thought_options(command.args):
            raise SettingsError(
                f"arm {arm.name} trains without thoughts, but {', '.join(given)} is among its options; set it in "
                "thinking, which is for the arms that think"
            )
        command = Command.of([*argv, "--original"], parser)
    if command.args.max_steps < 1:
        raise SettingsError(
            f"arm {arm.name} has max_steps {command.args.max_steps}, and a study compares numbers of steps; give one"
        )
    return lengthened(command, command.args.max_steps, recipe.evaluations, parser)


def lengthened(command: Command, n_steps: int, evaluations: int, parser: OneLineParser) -> Command:
    """Return a command of another number of steps, evaluated as often, at most."""
    every = -(-n_steps // evaluations)
    return Command.of(
        [*command.argv, f"--max_steps={n_steps}", f"--eval_steps={every}", f"--save_steps={every}"], parser
    )
