"""`quietstar study`: do thoughts pay, beside every control?"""

from quietstar.cli.train import train_parser
from quietstar.runs.options import OneLineParser, make_parser, parse, say
from quietstar.study.arguments import RUN, WHAT, StudyArguments
from quietstar.study.whole import study


def parser() -> OneLineParser:
    """Return the parser of `quietstar study`."""
    return make_parser(
        "quietstar study",
        "Do thoughts pay? Train every arm of a recipe on the same text, with several seeds, and compare them on the "
        "same held-out tokens.",
        StudyArguments,
        groups=(WHAT, RUN),
        positional={"recipe": "YAML file of the study, such as recipes/study/smollm2-gsm8k.yaml"},
    )


def main(argv: list[str]) -> None:
    """Parse the command line, and run the study or a part of it."""
    args, given = parse(parser(), argv, StudyArguments, rest=True)
    for line in study(given["recipe"], args, train_parser()):
        say(line)
