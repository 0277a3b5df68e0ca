"""`quietstar plan`: what a training step costs, and how to run it on given GPUs."""

import logging

from rich.console import Console

from quietstar.runs.options import OneLineParser, make_parser, parse
from quietstar.scaling.arguments import GROUPS, PlanArguments

LONGEST = 1000
"""characters per line when the output is not a terminal"""


def parser() -> OneLineParser:
    """Return the parser of `quietstar plan`."""
    return make_parser(
        "quietstar plan",
        "Compute the tokens, arithmetic, memory and communication of a training step from the model's config, and "
        "find the cheapest way to run it that fits. Options are those of quietstar train; only the config is loaded.",
        PlanArguments,
        groups=GROUPS,
    )


def main(argv: list[str]) -> None:
    """Parse the command line and plan."""
    (args,) = parse(parser(), argv, PlanArguments)
    from quietstar.scaling.plan import plan
    from quietstar.scaling.tables import choice, notes, shown

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about a kernel that a plan does not run
    found = plan(args)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = LONGEST
    console.print(shown(found, console.width))
    for line in (*notes(found), "", *choice(found)):
        console.print(line, markup=False)
