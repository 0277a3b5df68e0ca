"""`quietstar plan`: what a training step takes, and what to choose for given GPUs."""

from rich.console import Console

from quietstar.cli.options import make_parser, parse
from quietstar.scaling.arguments import GROUPS, PlanArguments


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

    found = plan(args)
    console = Console(highlight=False, soft_wrap=True)
    console.print(shown(found))
    for line in (*notes(found), "", *choice(found)):
        console.print(line, markup=False)
