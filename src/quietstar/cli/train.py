"""`quietstar train`: teach a model to think, from plain text."""

from quietstar.runs.options import OneLineParser, make_parser, parse, say
from quietstar.runs.processes import part_ways
from quietstar.training.arguments import GROUPS, QuietStarTrainingArguments
from quietstar.training.curriculum import CurriculumArguments
from quietstar.training.data.arguments import DataArguments
from quietstar.training.end import held_out_words
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training
from quietstar.training.stages import dry_run_of_stages, run_curriculum

CLASSES = (ModelArguments, DataArguments, QuietStarTrainingArguments)


def train_parser(*more: type) -> OneLineParser:
    """Return the parser of `quietstar train`, for a run of one stage, or with the options of more dataclasses."""
    return make_parser(
        "quietstar train",
        "Teach a language model to think before it speaks, from plain text. The paper's recipe is --config "
        "recipes/quietstar.yaml.",
        *CLASSES,
        *more,
        groups=GROUPS,
        config=True,
    )


def parser() -> OneLineParser:
    """Return the parser of `quietstar train`."""
    return train_parser(CurriculumArguments)


def main(argv: list[str]) -> None:
    """Parse the command line and train."""
    classes = (*CLASSES, CurriculumArguments)
    model_args, data_args, args, curriculum, given = parse(parser(), argv, *classes, rest=True)
    if curriculum.curriculum is None:
        figures = run_training(model_args, data_args, args, config=given["config"])
        lines = [figures["dry_run"].words()] if "dry_run" in figures else []
    elif args.dry_run:
        lines = dry_run_of_stages(model_args, data_args, args, curriculum)
    else:
        figures, lines = run_curriculum(model_args, data_args, args, curriculum, config=given["config"]), []
    part_ways()
    if args.process_index == 0:
        for line in lines or ["; ".join([f"saved to {args.output_dir}", *held_out_words(figures)])]:
            say(line)
