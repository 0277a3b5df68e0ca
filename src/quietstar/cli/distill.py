"""`quietstar distill`: a model that needs no thoughts, taught by one that thinks."""

from quietstar.cli.train import CLASSES
from quietstar.runs.options import OneLineParser, make_parser, parse, say
from quietstar.runs.processes import part_ways
from quietstar.training.arguments import GROUPS, METHOD_SETTINGS
from quietstar.training.distillation.arguments import LEARNED, DistillArguments
from quietstar.training.distillation.run import distill
from quietstar.training.model import OF_THOUGHTS

OMITTED = frozenset(
    ["model", "original", "branch_adapters", "freeze_base", "load_in_4bit", "ema_decay", "thoughts_shown"]
) | {*METHOD_SETTINGS, *OF_THOUGHTS.split()}
"""options of `quietstar train` that a student without thoughts has no use for"""


def parser() -> OneLineParser:
    """Return the parser of `quietstar distill`."""
    return make_parser(
        "quietstar distill",
        "Teach an ordinary language model what a thinking model predicts. The student is saved as a plain model, which "
        "any engine loads.",
        *CLASSES,
        DistillArguments,
        groups=(LEARNED, *GROUPS),
        config=True,
        positional={"teacher": "thinking model: folder or hub name"},
        omitted=OMITTED,
    )


def main(argv: list[str]) -> None:
    """Parse the command line and distill."""
    model_args, data_args, args, distill_args, given = parse(parser(), argv, *CLASSES, DistillArguments, rest=True)
    lines = distill(given["teacher"], model_args, data_args, args, distill_args, config=given["config"])
    part_ways()
    if args.process_index == 0:
        for line in lines:
            say(line)
