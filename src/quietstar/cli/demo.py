"""`quietstar demo`: the whole method in minutes, on a CPU."""

from quietstar.cli.options import make_parser, parse
from quietstar.demo.story import DemoArguments, tell


def main(argv: list[str]) -> None:
    """Parse the command line and run the demo."""
    parser = make_parser(
        "quietstar demo",
        "A tiny base model learns a small language, Quiet-STaR teaches it to think, and a table shows how much "
        "better it answers with its thoughts. Every figure is measured in the run, on held-out problems.",
        DemoArguments,
    )
    (args,) = parse(parser, argv, DemoArguments)
    tell(args)
