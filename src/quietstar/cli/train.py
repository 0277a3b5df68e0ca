"""`quietstar train`: teach a model to think, from plain text."""

from quietstar.runs.options import OneLineParser, make_parser, parse, say
from quietstar.runs.processes import part_ways
from quietstar.training.arguments import GROUPS, QuietStarTrainingArguments
from quietstar.training.data.arguments import DataArguments
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import held_out_words, run_training

CLASSES = (ModelArguments, DataArguments, QuietStarTrainingArguments)


def train_parser() -> OneLineParser:
    """Return the parser of `quietstar train`."""
    return make_parser(
        "quietstar train",
        "Teach a language model to think before it speaks, from plain text. The paper's recipe is --config "
        "recipes/quietstar.yaml.",
        *CLASSES,
        groups=GROUPS,
        config=True,
    )


def main(argv: list[str]) -> None:
    """Parse the command line and train."""
    model_args, data_args, args, given = parse(train_parser(), argv, *CLASSES, rest=True)
    figures = run_training(model_args, data_args, args, config=given["config"])
    part_ways()
    if args.dry_run:
        if args.process_index == 0:
            say(figures["dry_run"].words())
        return
    if args.process_index == 0:
        say("; ".join([f"saved to {args.output_dir}", *held_out_words(figures)]))
