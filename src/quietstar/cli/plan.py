"""`quietstar plan`: what a training step takes, and what to choose for given GPUs."""

import logging

from rich.console import Console

from quietstar.cli.options import make_parser, parse
from quietstar.scaling.arguments import GROUPS, PlanArguments

LONGEST = 1000
"""characters of a line where there is no terminal"""


def main(argv: list[str]) -> None:
    """Parse and plan."""
    parser = make_parser(
        "quietstar plan",
        "Tokens, arithmetic, memory and communication of a training step, worked out from the model's config, and the "
        "cheapest way to run it that fits. Options are those of quietstar train; nothing but the config is downloaded.",
        PlanArguments,
        groups=GROUPS,
    )
    (args,) = parse(parser, argv, PlanArguments)
    from quietstar.scaling.plan import plan
    from quietstar.scaling.tables import choice, notes, shown

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which warns of a kernel that nothing here runs
    found = plan(args)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = LONGEST
    console.print(shown(found, console.width))
    for line in (*notes(found), "", *choice(found)):
        console.print(line, markup=False)
